"""A claim of the paper, a printed number with its precision, and the verdict that a method reaches."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Literal

Verdict = Literal["reproduced", "close", "differs", "inconsistent", "not recomputable"]
VERDICTS: dict[Verdict, str] = {
    "reproduced": "recomputed, and equal to every printed digit",
    "close": "recomputed, and within 2 % or one unit of the last printed digit (never for counts)",
    "differs": "recomputed, and not equal",
    "inconsistent": "impossible, given the paper's other numbers or its released data",
    "not recomputable": "the data needed are not public; the note says what is still known",
}
NEAR = 0.02  # relative difference that counts as close


@dataclass(frozen=True)
class Printed:
    """A number as printed: its value, and half a unit of its last digit (what rounding may have hidden)."""

    value: float
    half: float
    digits: int

    @classmethod
    def of(cls, text: str) -> "Printed":
        """Read a printed number, for instance `4.00`."""
        digits = len(text.partition(".")[2])
        return cls(float(text), 0.5 * 10**-digits, digits)

    def shows(self, number: float) -> bool:
        """Whether the number, rounded to as many digits, is printed so (a tie may have been rounded either way)."""
        return abs(number - self.value) <= self.half + 1e-9

    def near(self, number: float) -> bool:
        """Whether the number is within 2 % or one unit of the last printed digit; a count is exact or it is not."""
        return self.digits > 0 and abs(number - self.value) <= max(NEAR * abs(self.value), 2 * self.half) + 1e-9

    def write(self, number: float) -> str:
        """The number with as many digits as are printed."""
        return f"{number:.{self.digits}f}"


@dataclass(frozen=True)
class Claim:
    """One row of `claims.csv`: what the paper says where, and the method that checks it."""

    id: str
    location: str
    claim: str
    reported: str
    reported_sd: str
    n: str
    method: str

    @property
    def mean(self) -> Printed:
        """The printed number."""
        return Printed.of(self.reported)

    @property
    def sd(self) -> Printed | None:
        """The printed standard deviation, if there is one."""
        return Printed.of(self.reported_sd) if self.reported_sd else None


@dataclass(frozen=True)
class Result:
    """What a method found: the recomputed number (as text, empty where there is none), the verdict, and why."""

    verdict: Verdict
    note: str = ""
    recomputed: str = ""
    recomputed_sd: str = ""


Paper = dict[str, Claim]  # every claim by its id


def claims() -> Paper:
    """The paper's claims, in the paper's order."""
    text = (resources.files(__package__) / "claims.csv").read_text(encoding="utf-8")
    return {row["id"]: Claim(**row) for row in csv.DictReader(text.splitlines())}


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
