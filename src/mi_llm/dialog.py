"""What flows through the house: a dialog of turns, and the rounds it falls into.

A *volley* is everything one person says before the other speaks. A *round* is a client volley and the counselor volley
that answers it (paper, Automatic Evaluation): its history is all rounds before it.
"""

import statistics
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mi_llm import storage

Role = Literal["client", "counselor"]


class Turn(BaseModel):
    """One volley: who speaks, and what they say."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Role
    text: str


class Dialog(BaseModel):
    """One counselling conversation.

    `id` is unique in its source; `source` names the corpus; `meta` keeps what the reader learned beside the words
    (file, line, topic, quality).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    source: str
    turns: tuple[Turn, ...]
    meta: dict[str, Any] = Field(default_factory=dict)

    def rounds(self) -> Iterator["Round"]:
        """Yield each client volley that a counselor volley answers, with all turns before it as history."""
        number = 0
        for place in range(len(self.turns) - 1):
            question, answer = self.turns[place], self.turns[place + 1]
            if question.role == "client" and answer.role == "counselor":
                number += 1
                yield Round(
                    id=f"{self.id}#{number}",
                    dialog=self.id,
                    number=number,
                    history=self.turns[:place],
                    client=question.text,
                    counselor=answer.text,
                )


class Round(BaseModel):
    """One test sample: what the client says, the reference reply, and everything said before."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    dialog: str
    number: int
    history: tuple[Turn, ...]
    client: str
    counselor: str


def write_dialogs(path: Path, dialogs: Iterable[Dialog]) -> None:
    """Write dialogs as JSON Lines."""
    storage.write_lines(path, (dialog.model_dump() for dialog in dialogs))


def read_dialogs(path: Path) -> list[Dialog]:
    """Read dialogs that `write_dialogs` wrote."""
    return [Dialog.model_validate(record) for record in storage.read_lines(path)]


def write_rounds(path: Path, rounds: Iterable[Round]) -> None:
    """Write round samples as JSON Lines."""
    storage.write_lines(path, (sample.model_dump() for sample in rounds))


def read_rounds(path: Path) -> list[Round]:
    """Read round samples that `write_rounds` wrote."""
    return [Round.model_validate(record) for record in storage.read_lines(path)]


def characters(text: str) -> int:
    """Letters, digits and ideographs of a text: what Table 3 calls words, punctuation and spaces left out."""
    return sum(unicodedata.category(character)[0] in "LNM" for character in text)


def features(dialogs: Sequence[Dialog]) -> dict[str, float]:
    """Table 3: dialogs, rounds a dialog, characters a volley by role; means with population standard deviations."""
    rounds = [sum(1 for _ in dialog.rounds()) for dialog in dialogs]
    row: dict[str, float] = {"dialogs": len(dialogs)}
    row |= {"rounds_mean": statistics.fmean(rounds), "rounds_sd": statistics.pstdev(rounds)}
    roles: tuple[Role, ...] = ("counselor", "client")
    for role in roles:
        lengths = [characters(turn.text) for dialog in dialogs for turn in dialog.turns if turn.role == role] or [0]
        row |= {f"{role}_mean": statistics.fmean(lengths), f"{role}_sd": statistics.pstdev(lengths)}
    return {name: round(value, 4) for name, value in row.items()}
