"""Who is the client, and who the counselor: by the labels' names, by the parameters, or by what the speakers say.

The words of a speaker are evidence: a client speaks of themselves (我, I) more than of the other (您, you), a counselor the other
way around, and asks more. Where names and words leave it open, a person must say it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from mi_llm.corpora.labels import ROLES
from mi_llm.corpora.own.draft import SYSTEM, TOOL, Volley
from mi_llm.dialog import Role
from mi_llm.language import language
from mi_llm.language.language import CHINESE

Part = Literal["client", "counselor", "drop", "speech"]  # `drop`: whose volleys are left out; `speech`: no speaker, but words

NAMES: dict[str, Role] = {
    **ROLES,
    **dict.fromkeys(
        ("human", "patient", "interviewee", "caller", "visitor", "pt", "cl", "患者", "病人", "案主", "咨客"), "client"
    ),
    **dict.fromkeys(("来", "访", "患"), "client"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bot", "model", "ai", "clinician", "practitioner", "provider", "interviewer"), "counselor"
    ),
    **dict.fromkeys(("psychologist", "psychotherapist", "doctor", "nurse", "coach", "helper", "listener", "th"), "counselor"),
    **dict.fromkeys(
        ("医生", "大夫", "心理师", "心理医生", "心理老师", "治疗者", "访谈者", "倾听者", "咨", "治", "医"), "counselor"
    ),
}
SPELLED = {re.compile(r"counsell?[eo]rs?"): "counselor", re.compile(r"clients?|patients?"): "client"}
NOBODY = {"system": SYSTEM, "tool": TOOL, "function": TOOL, "observation": TOOL, "function_call": TOOL, "ipython": TOOL}
LETTERS: tuple[tuple[set[str], dict[str, Role]], ...] = (  # which letters stand together, and whom they then mean
    ({"t", "c"}, {"t": "counselor", "c": "client"}),
    ({"t", "p"}, {"t": "counselor", "p": "client"}),
    ({"c", "p"}, {"c": "counselor", "p": "client"}),
    ({"i", "p"}, {"i": "counselor", "p": "client"}),
)
LONG = sorted((name for name in ROLES if CHINESE.search(name) or len(name) > 5), key=len, reverse=True)
SELF = re.compile("|".join(known.persons.own for known in language.every()), re.IGNORECASE)
OTHER = re.compile("|".join(known.persons.other for known in language.every()), re.IGNORECASE)
ASKS = re.compile(r"[?？]")
CLEAR = 0.2  # difference between two speakers' shares of words about themselves that decides


@cache
def known_role(label: str) -> Role | None:
    """The role that a label names, by itself, with a number or a remark, or inside a longer name; None for an unknown one."""
    plain = re.sub(r"[（(【\[].*?[）)】\]]|[\s*_#:：.]+|\d+", "", label).lower()
    if plain in NAMES:
        return NAMES[plain]
    for pattern, role in SPELLED.items():
        if pattern.fullmatch(plain):
            return "client" if role == "client" else "counselor"
    inside = {ROLES[name] for name in LONG if plain.startswith(name) or plain.endswith(name)}
    return inside.pop() if len(inside) == 1 and len(plain) <= 14 else None


@dataclass(frozen=True)
class Speaker:
    """One label: whom it means, why, in how many volleys it stands, and what those say of themselves and of the other."""

    label: str
    part: Part | Literal["system", "tool", "unknown"]
    reason: str
    volleys: int
    first: str
    own_words: int
    other_words: int
    questions: int

    @property
    def about_self(self) -> float:
        """The share of words about themselves among those about either."""
        return self.own_words / max(1, self.own_words + self.other_words)

    @property
    def evidence(self) -> str:
        """The words that speak for it, in numbers."""
        asks = f"{self.questions} of {self.volleys} volleys ask"
        return f"{self.own_words} times I or me (我), {self.other_words} times you (您, 你), {asks}"


def decided(volleys: Iterable[Volley], given: Mapping[str, Part]) -> dict[str, Speaker]:
    """Every label with the part that it has, in the order of first appearance; `unknown` where nothing decides."""
    spoken: dict[str, list[Volley]] = {}
    for volley in volleys:
        spoken.setdefault(volley.label, []).append(volley)
    parts = {label: by_name(label, given) for label in spoken}
    by_letters(parts)
    by_exclusion(parts)
    speakers = {label: speaker(label, *parts[label], spoken[label]) for label in spoken}
    return by_words(speakers)


def by_name(label: str, given: Mapping[str, Part]) -> tuple[str, str]:
    """The part that parameters or the name give a label, and why."""
    if label in given:
        return given[label], "as given"
    base = unnumbered(label)
    if base in given:
        return given[base], "as given"
    if label.lower() in NOBODY:
        return NOBODY[label.lower()], "by its name"
    if role := known_role(label):
        return role, "by its name"
    return "unknown", ""


def unnumbered(label: str) -> str:
    """A label without the number at its end, which counts turns or persons."""
    return re.sub(r"\s*\d+$", "", label)


def by_letters(parts: dict[str, tuple[str, str]]) -> None:
    """Decide single letters that stand together, as T and C."""
    open_ = {label: unnumbered(label).lower() for label, (part, _) in parts.items() if part == "unknown"}
    for letters, roles in LETTERS:
        if set(open_.values()) == letters:
            parts.update({label: (roles[letter], "by the pair of letters") for label, letter in open_.items()})


def by_exclusion(parts: dict[str, tuple[str, str]]) -> None:
    """Where one of two speakers is known, the other is the other."""
    people = {label: part for label, (part, _) in parts.items() if part not in (SYSTEM, TOOL, "drop", "speech")}
    open_ = [label for label, part in people.items() if part == "unknown"]
    known = {part for part in people.values() if part != "unknown"}
    if len(open_) == 1 and len(known) == 1:
        parts[open_[0]] = ("client" if known == {"counselor"} else "counselor", "the only other speaker")


def speaker(label: str, part: str, reason: str, volleys: list[Volley]) -> Speaker:
    """A speaker with the evidence of their words."""
    texts = [volley.text for volley in volleys if isinstance(volley.text, str)]
    counts = [sum(len(pattern.findall(text)) for text in texts) for pattern in (SELF, OTHER)]
    asks = sum(bool(ASKS.search(text)) for text in texts)
    return Speaker(label, part, reason, len(volleys), volleys[0].where, counts[0], counts[1], asks)  # type: ignore[arg-type]


def by_words(speakers: dict[str, Speaker]) -> dict[str, Speaker]:
    """Decide two unknown speakers by what they say, if it is clear."""
    open_ = [speaker for speaker in speakers.values() if speaker.part == "unknown"]
    others = [speaker for speaker in speakers.values() if speaker.part in ("client", "counselor")]
    if len(open_) == 2 and not others:
        client, counselor = sorted(open_, key=lambda speaker: -speaker.about_self)
        asks = counselor.questions / counselor.volleys - client.questions / client.volleys
        if client.about_self - counselor.about_self >= CLEAR and asks > -CLEAR:
            speakers[client.label] = replace(client, part="client", reason="by their words")
            speakers[counselor.label] = replace(counselor, part="counselor", reason="by their words")
    return speakers


def contradiction(speakers: Iterable[Speaker]) -> str | None:
    """A sentence where the words speak against the names, None where they do not."""
    by_part: dict[str, list[Speaker]] = {"client": [], "counselor": []}
    for speaker in speakers:
        by_part.get(speaker.part, []).append(speaker)
    if not all(by_part.values()):
        return None
    shares = {
        part: sum(speaker.own_words for speaker in speakers_of_part)
        / max(1, sum(speaker.own_words + speaker.other_words for speaker in speakers_of_part))
        for part, speakers_of_part in by_part.items()
    }
    if shares["counselor"] - shares["client"] < CLEAR:
        return None
    return (
        f"the words speak against this: {shares['counselor']:.0%} of the counselor's words about a person are I or me (我), of"
        f" the client's {shares['client']:.0%}. If client and counselor are the wrong way around, say so with --speaker"
    )
