"""The verdict that a method reaches on a claim of the paper."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mi_llm.paper.claims import Claim

Verdict = Literal["reproduced", "close", "differs", "inconsistent", "not recomputable"]
VERDICTS: dict[Verdict, str] = {
    "reproduced": "recomputed, and equal to every printed digit",
    "close": "recomputed, and within 2 % or one unit of the last printed digit (never for counts)",
    "differs": "recomputed, and not equal",
    "inconsistent": "impossible, given the paper's other numbers or its released data",
    "not recomputable": "the data needed are not public; the note says what is still known",
}


@dataclass(frozen=True)
class Result:
    """What a method found: the recomputed number (as text, empty where there is none), the verdict, and why."""

    verdict: Verdict
    note: str = ""
    recomputed: str = ""
    recomputed_sd: str = ""


def judged(claim: Claim, mean: float, sd: float | None = None, note: str = "") -> Result:
    """Compare recomputed numbers with the printed ones."""
    pairs = [(claim.mean, mean)]
    if claim.sd is not None and sd is not None:
        pairs.append((claim.sd, sd))
    verdict: Verdict = "differs"
    if all(printed.shows(number) for printed, number in pairs):
        verdict = "reproduced"
    elif all(printed.near(number) for printed, number in pairs):
        verdict = "close"
    return Result(verdict, note, claim.mean.write(mean), claim.sd.write(sd) if claim.sd and sd is not None else "")


def equal(claim: Claim, found: str, note: str = "") -> Result:
    """Compare recomputed words with the printed ones."""
    return Result("reproduced" if found == claim.reported else "differs", note, found)


def holds(truth: bool, note: str, recomputed: str = "") -> Result:
    """A statement in words that the numbers bear out, or not."""
    return Result("reproduced" if truth else "differs", note, recomputed)


def unknown(note: str) -> Result:
    """What cannot be recomputed, and why."""
    return Result("not recomputable", note)


def listed(words: Iterable[str]) -> str:
    """Words in a row: `a, b and c`."""
    found = list(words)
    return " and ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)
