"""The paper's claims, `claims.csv`: one row per printed number or statement, with its precision and the audit's method for it."""

import csv
from dataclasses import dataclass
from importlib import resources

NEAR = 0.02  # relative difference that counts as close
# The rows of Table 3, by corpus or set of dialogs, as the ids of its claims name them.
TABLE_3 = {"cpsycound": "CPsy", "psydtcorpus": "PsyDT", "train": "train", "test": "test"}


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

    @property
    def statement(self) -> bool:
        """Whether the claim is a statement in words, without a number of its own."""
        return self.reported == "qualitative"


Paper = dict[str, Claim]  # every claim by its id


def claims() -> Paper:
    """The paper's claims, in the paper's order."""
    text = (resources.files(__package__) / "claims.csv").read_text(encoding="utf-8")
    return {row["id"]: Claim(**row) for row in csv.DictReader(text.splitlines())}
