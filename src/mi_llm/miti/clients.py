"""Standardized clients (paper, Methods, Manual Evaluation): who talks with the counselor models, and how a talk goes on.

A profile names the behavior to be changed, how it shows, the reason under it, and the readiness at first; motivation rises only
when the reason has been addressed. A study names its file of them (`simulate.profiles`): the bundle's are in
`language/<language>/clients.yaml`, the authors' outlines in their release. A profile with lines of its own can be played by the
scripted client, which answers to what the lexical coder sees in the counselor's volley; a language model can play any.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mi_llm import storage
from mi_llm.codebook import lexical
from mi_llm.codebook.coding import Behavior, volley
from mi_llm.dialog import Turn
from mi_llm.language.language import DEFAULT
from mi_llm.problem import Problem

PUSHED = frozenset({Behavior.PERSUADE, Behavior.CONFRONT})
HEARD = frozenset(
    {Behavior.SIMPLE, Behavior.COMPLEX, Behavior.AFFIRM, Behavior.SEEK, Behavior.EMPHASIZE}
)  # what addresses a reason that was told
INVITED = HEARD | {Behavior.QUESTION}
WILLING = 7  # readiness, 0 to 10, from which on the client makes a plan
OPEN = 2  # how much of the behavior is told before the reason can be


class Strict(BaseModel):
    """A model that refuses unknown fields and cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lines(Strict):
    """What a scripted client says of themselves, each list in its order."""

    opening: str
    manifestation: tuple[str, ...]
    reason: tuple[str, ...]
    change: tuple[str, ...]
    plan: str


class Common(Strict):
    """What any scripted client says: when pushed, when there is nothing to answer, at the end, and when giving up."""

    sustain: tuple[str, ...]
    waiting: tuple[str, ...]
    goodbye: str
    break_off: str


class Profile(Strict):
    """A standardized client; `readiness` runs from 0 to 10 and is None where only words are given."""

    id: str
    topic: str = ""
    behavior: str
    manifestation: str
    reason: str
    readiness: int | None = Field(default=None, ge=0, le=10)
    willing: str = ""
    says: Lines | None = None

    @property
    def scripted(self) -> bool:
        """Whether it has what a scripted client needs."""
        return self.says is not None and self.readiness is not None


class Clients(Strict):
    """A file of clients: their profiles, and the lines that all scripted ones share."""

    profiles: Annotated[tuple[Profile, ...], Field(min_length=1)]
    common: Common | None = None


def bundled(code: str = DEFAULT) -> Path:
    """The bundle's file of clients in a language."""
    return Path("src/mi_llm/language") / code / "clients.yaml"


def read_profiles(path: Path) -> tuple[list[Profile], Common | None]:
    """The profiles of a file, and the lines that all scripted clients share, if it has any; raises Problem for a file of none.

    A YAML file is like the bundle's; a JSON file has the authors' outlines, which have no lines.
    """
    if path.suffix == ".json":
        return outlined(path), None
    try:
        content = Clients.model_validate(storage.read_yaml(path))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"])) or "its content"
        raise Problem(str(path), f"{field}: {fault['msg']}", "a file of clients", f"see {bundled()} for the fields") from None
    names = [profile.id for profile in content.profiles]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Problem(str(path), f"two clients {twice}", "each id once", "rename one of them")
    return list(content.profiles), content.common


def outlined(path: Path) -> list[Profile]:
    """The authors' client outlines, from `read/release/outlines.json`."""
    return [
        Profile(
            id=f"outline-{number}",
            behavior=outline["behavior"],
            manifestation=outline["manifestation"],
            reason=outline["reason"],
            willing=outline["willing"],
        )
        for number, outline in enumerate(storage.read_json(path), 1)
    ]


class Scripted:
    """A client as a state machine: what has been told, whether the reason has been addressed, and how ready the client is.

    A volley that persuades or confronts gets sustain talk and lowers readiness. One that reflects, asks, affirms or leaves the
    choice is answered: first with how the behavior shows, then with the reason, and, once the reason was told and heard, with
    change talk, which raises readiness by 1. At `WILLING` comes the plan, then the farewell. To any other volley the client gives
    a waiting reply. The client breaks off at readiness 0, or when the lines for an answer are used up. Nothing is random: the
    same counselor volleys get the same answers.
    """

    def __init__(self, profile: Profile, common: Common | None, code: str = DEFAULT, cues: str = "") -> None:
        if profile.says is None or profile.readiness is None or common is None:
            raise ValueError(f"profile {profile.id} has no lines for a scripted client")
        self.lines, self.common, self.code, self.cues = profile.says, common, code, cues
        self.readiness = profile.readiness
        self.told: dict[str, int] = {}
        self.addressed = self.planned = self.over = False

    def say(self, turns: Sequence[Turn]) -> str | None:
        """The next volley after the counselor's last; None when the client has said farewell."""
        if self.over:
            return None
        if not turns:
            return self.lines.opening
        if self.planned:
            self.over = True
            return self.common.goodbye
        behaviors = volley(coded.behavior for coded in lexical.code(turns[-2].text, turns[-1].text, self.code, self.cues))
        return self.answer(behaviors) or self.leave()

    def answer(self, behaviors: frozenset[Behavior]) -> str | None:
        """The answer to a volley with these behaviors; None when nothing is left to say."""
        if behaviors & PUSHED:
            self.readiness -= 1
            return self.next("sustain", self.common.sustain) if self.readiness > 0 else None
        if not behaviors & INVITED:
            return self.next("waiting", self.common.waiting)
        if self.told.get("reason", 0) == len(self.lines.reason) and behaviors & HEARD:
            self.addressed = True
        if self.addressed:
            self.readiness += 1
            if self.readiness >= WILLING:
                self.planned = True
                return self.lines.plan
            return self.next("change", self.lines.change)
        if self.told.get("manifestation", 0) >= OPEN and behaviors & HEARD and (line := self.next("reason", self.lines.reason)):
            return line
        return self.next("manifestation", self.lines.manifestation) or self.next("reason", self.lines.reason)

    def next(self, name: str, lines: Sequence[str]) -> str | None:
        """The next of some lines, or None after the last."""
        index = self.told.get(name, 0)
        self.told[name] = min(index + 1, len(lines))
        return lines[index] if index < len(lines) else None

    def leave(self) -> str:
        """Break off."""
        self.over = True
        return self.common.break_off
