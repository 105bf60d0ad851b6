"""The verdict that a method reaches on a claim of the paper, what it rests on, and why it is negative where it is."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from mi_llm.paper.claims import Claim

Verdict = Literal["reproduced", "close", "differs", "inconsistent", "possible", "not recomputable"]
VERDICTS: dict[Verdict, str] = {
    "reproduced": "recomputed, and equal to every printed digit, or within the rounding of the printed numbers that it was "
    "recomputed from; of a statement: the numbers bear it out",
    "close": "recomputed, and within 2 % or one unit of the last printed digit (never for counts)",
    "differs": "recomputed, and not equal",
    "inconsistent": "cannot hold together with the paper's other numbers or its released data",
    "possible": "cannot be recomputed, but fits the paper's other numbers in a check that it could have failed",
    "not recomputable": "the data needed, or the meaning of a word, are not public; the note says what is still known",
}
CHINESE: dict[Verdict, str] = {
    "reproduced": "可复现",
    "close": "接近",
    "differs": "不符",
    "inconsistent": "矛盾",
    "possible": "可能",
    "not recomputable": "无法重算",
}
NEGATIVE: tuple[Verdict, ...] = ("differs", "inconsistent")
Basis = Literal["data", "paper", "cited"]
BASES: dict[Basis, str] = {
    "data": "released or public data",
    "paper": "the paper's own text, tables and appendix",
    "cited": "a text that the paper cites, or one on the same thing",
}


@dataclass(frozen=True)
class Result:
    """What a method found: the recomputed number (as text, empty where there is none), the verdict, and why.

    `cause` names the finding that explains a negative verdict (`findings.yaml`), empty where none does. `basis` says what the
    claim was compared with; None stands for the method's usual one.
    """

    verdict: Verdict
    note: str = ""
    recomputed: str = ""
    recomputed_sd: str = ""
    cause: str = ""
    basis: Basis | None = None


def judged(claim: Claim, mean: float, sd: float | None = None, note: str = "") -> Result:
    """The verdict of recomputed numbers against the printed ones."""
    pairs = [(claim.mean, mean)]
    if claim.sd is not None and sd is not None:
        pairs.append((claim.sd, sd))
    verdict: Verdict = "differs"
    if all(printed.shows(number) for printed, number in pairs):
        verdict = "reproduced"
    elif all(printed.near(number) for printed, number in pairs):
        verdict = "close"
    return Result(verdict, note, claim.mean.write(mean), claim.sd.write(sd) if claim.sd and sd is not None else "")


def equal(claim: Claim, recomputed: str, note: str = "") -> Result:
    """The verdict of recomputed words against the printed ones."""
    return Result("reproduced" if recomputed == claim.reported else "differs", note, recomputed)


def holds(truth: bool, note: str, recomputed: str = "") -> Result:
    """The verdict on a statement in words: whether the numbers bear it out."""
    return Result("reproduced" if truth else "differs", note, recomputed)


def unknown(note: str) -> Result:
    """The verdict on what cannot be recomputed; the note says why."""
    return Result("not recomputable", note)


def because(result: Result, cause: str) -> Result:
    """The same result, with its cause if the verdict is negative."""
    return replace(result, cause=cause) if result.verdict in NEGATIVE else result


def listed(words: Iterable[str]) -> str:
    """Words in a row: `a, b and c`."""
    items = list(words)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
