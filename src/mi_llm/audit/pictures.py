"""A small picture for each of the paper's tables: the numbers as reported, across, against the numbers as recomputed, upward.

Both axes have the same scale, so that equal numbers lie on a straight line: a square-root scale from 0, on which small counts and
large ones can be told apart, or a linear one where no number is small beside the others. What was not recomputed is a stroke on
the lower edge. Positions are in units of the picture, rightward and upward from where the axes meet.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mi_llm.audit.verdict import NEGATIVE, Result
from mi_llm.paper.claims import Claim

SIDE = 150.0  # of the square between the axes
NARROW = 0.4  # from this ratio of the smallest number to the largest on, the scale is linear


@dataclass(frozen=True)
class Point:
    """A claim with a recomputed number, and its position."""

    claim: Claim
    result: Result
    x: float
    y: float


@dataclass(frozen=True)
class Picture:
    """The points, the x of claims without a recomputed number, and the ticks of both axes: position and label."""

    points: list[Point]
    lacking: list[float]
    ticks: list[tuple[float, str]]


def number(text: str) -> float | None:
    """A number as text; of counts of three models, `2x3` or `2+1+3`, the sum. None for anything else."""
    if re.fullmatch(r"\d+(\.\d+)?(e-?\d+)?", text):
        return float(text)
    if match := re.fullmatch(r"(\d+)x(\d+)", text):
        return float(int(match[1]) * int(match[2]))
    return float(sum(map(int, text.split("+")))) if re.fullmatch(r"\d+(\+\d+)+", text) else None


def nice(value: float) -> float:
    """The smallest number of the form 1, 2 or 5 times a power of ten that is not below a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * (1 - 1e-9))


def picture(claims: Sequence[tuple[Claim, Result]]) -> Picture | None:
    """The picture of a table's claims; None where no number of it was recomputed."""
    pairs = [(claim, result, number(claim.reported), number(result.recomputed)) for claim, result in claims]
    both = [(claim, result, x, y) for claim, result, x, y in pairs if x is not None and y is not None]
    values = [value for _, _, x, y in both for value in (x, y)]
    if not values or not max(values):
        return None
    low, high, root = 0.0, nice(max(values)), math.sqrt
    marks = [0.0, high / 10, high / 2, high]
    if min(values) >= NARROW * max(values):
        step = nice(max(max(values) - min(values), 0.1 * max(values)) / 3)
        low, high, root = math.floor(min(values) / step) * step, (math.floor(max(values) / step) + 1) * step, float
        marks = [low + step * index for index in range(round((high - low) / step) + 1)]

    def position(value: float) -> float:
        return round(SIDE * (root(min(max(value, low), high)) - root(low)) / (root(high) - root(low)), 1)

    lacking = [position(x) for _, _, x, y in pairs if x is not None and y is None and low <= x <= high]
    drawn_last = sorted(both, key=lambda pair: pair[1].verdict in NEGATIVE)  # on top of the others
    points = [Point(claim, result, position(x), position(y)) for claim, result, x, y in drawn_last]
    return Picture(points, lacking, [(position(mark), f"{mark:g}") for mark in marks])
