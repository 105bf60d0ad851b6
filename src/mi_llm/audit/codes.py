"""Table 6: are the printed means and standard deviations possible, and do they fit each other?

GRIM: Brown and Heathers 2017, doi:10.1177/1948550616673876. GRIMMER: Anaya 2016, doi:10.7287/peerj.preprints.2400.
A dialog's code is a whole number, or, averaged over two raters, a multiple of one half. Everything below counts in units of
1/raters, so that sums and sums of squares are whole numbers.
"""

import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
from scipy import stats

from mi_llm.audit.evidence import Evidence
from mi_llm.audit.verdict import Result, judged
from mi_llm.paper.claims import Claim, Paper, Printed
from mi_llm.paper.models import REAL, tuned
from mi_llm.statistics import holm, welch_freedom, welch_interval

GLOBALS = ("CCT", "SST", "EMP", "PAR")
COUNTS = ("GI", "PwP", "Q", "SR", "CR", "TR", "AF", "SEEK", "EA", "PERS", "CONF")
COLUMNS = {model.table_6: 10 for model in tuned().values()} | {REAL: 30}  # Table 6's columns, and their dialogs as stated
SIZES = (9, 10, 30)
RATERS = (1, 2)
SUMS = {"TR": ("SR", "CR"), "TECH": ("CCT", "SST"), "REL": ("PAR", "EMP")}  # rows that follow from two others
RATIOS = {"CRR": (("CR",), ("SR", "CR")), "RQ": (("SR", "CR"), ("Q",))}
RATIOS["ADH"] = (("SEEK", "AF", "EA"), ("SEEK", "AF", "EA", "CONF", "PERS"))
UNITS = {1: "whole numbers", 2: "multiples of one half"}  # codes of one rater, averages of two
ROUNDS = {model.table_6: f"T4-{model.table_4}-rounds" for model in tuned().values()} | {REAL: "T4-real-rounds"}
EXAMPLE = "adherence_codes.csv"
SEARCH = 40_000_000  # bits of work up to which the exhaustive search is tried


def totals(mean: Printed, size: int, raters: int) -> range:
    """GRIM: the sums, in units of 1/raters, with which the mean of `size` codes is printed as it is."""
    low = math.ceil((mean.value - mean.half) * size * raters - 1e-9)
    high = math.floor((mean.value + mean.half) * size * raters + 1e-9)
    return range(low, high + 1)


def squares(total: int, sd: Printed, size: int, raters: int) -> list[int]:
    """GRIMMER: the sums of squares with which, given the sum, the sample SD is printed as it is; parity must agree."""
    scale = (size - 1) * raters**2
    low = max(sd.value - sd.half, 0) ** 2 * scale + total**2 / size
    high = (sd.value + sd.half) ** 2 * scale + total**2 / size
    return [square for square in range(math.ceil(low - 1e-6), math.floor(high + 1e-6) + 1) if (square - total) % 2 == 0]


def spread(total: int, square: int, size: int, low: int, high: int) -> list[int] | None:
    """Build `size` whole numbers from `low` to `high` with a sum and a sum of squares; None if this way finds none.

    Starts from equal numbers and moves units from a smaller to a larger one: a move over a gap g adds 2(g + 1) to the squares.
    """
    each, over = divmod(total, size)
    numbers = [each + 1] * over + [each] * (size - over)
    if numbers[0] > high or numbers[-1] < low:
        return None
    left = (square - sum(number * number for number in numbers)) // 2
    while left > 0:
        best: tuple[int, int, int] | None = None
        for up in range(size):
            for down in range(size):
                step = numbers[up] - numbers[down] + 1
                if (
                    up != down
                    and 0 < step <= left
                    and numbers[up] < high
                    and numbers[down] > low
                    and (best is None or step > best[0])
                ):
                    best = (step, up, down)
        if best is None:
            return None
        numbers[best[1]] += 1
        numbers[best[2]] -= 1
        left -= best[0]
    return sorted(numbers) if left == 0 else None


def exists(total: int, square: int, size: int, low: int, high: int) -> bool:
    """Exhaustively: are there `size` whole numbers from `low` to `high` with this sum and this sum of squares?

    `reached[s]` is a bit set of the sums of squares that go with the sum s, number by number.
    """
    mask = (1 << (square + 1)) - 1
    reached = {0: 1}
    for _ in range(size):
        following: dict[int, int] = {}
        for sums, bits in reached.items():
            for number in range(low, min(high, total - sums) + 1):
                moved = (bits << (number * number)) & mask
                if moved:
                    following[sums + number] = following.get(sums + number, 0) | moved
        reached = following
    return bool(reached.get(total, 0) >> square & 1)


@cache
def possible(mean: Printed, sd: Printed, size: int, raters: int, rated: bool) -> tuple[bool, bool]:
    """Whether the mean is possible, and whether mean and SD are possible together; `rated` codes run from 1 to 5, counts from 0.

    Where no data set is found quickly and an exhaustive search would be too long, the SD counts as possible.
    """
    sums = totals(mean, size, raters)
    for total in sums:
        largest = min(5 * raters, total) if rated else total
        low = raters if rated else 0
        for square in squares(total, sd, size, raters):
            if spread(total, square, size, low, largest):
                return True, True
            largest_here = min(largest, math.isqrt(square))
            work = size * (total + 1) * (largest_here + 1) * max(square, 1) // 64
            if work > SEARCH or exists(total, square, size, low, largest_here):
                return True, True
    return bool(sums), False


def cell(paper: Paper, row: str, column: str) -> Claim:
    """One cell of Table 6."""
    return paper[f"T6-{row}-{column}"]


def moments(paper: Paper, row: str, column: str) -> tuple[Printed, Printed]:
    """A cell's printed mean and SD."""
    claim = cell(paper, row, column)
    assert claim.sd is not None
    return claim.mean, claim.sd


def grid(paper: Paper) -> pd.DataFrame:
    """GRIM and GRIMMER for every mean and SD of a rating or count: columns cell, n, raters, mean_possible, sd_possible."""
    rows = []
    for row in (*GLOBALS, *COUNTS):
        for column in COLUMNS:
            mean, sd = moments(paper, row, column)
            for size in SIZES:
                for raters in RATERS:
                    mean_ok, sd_ok = possible(mean, sd, size, raters, row in GLOBALS)
                    rows.append(
                        {
                            "cell": f"T6-{row}-{column}",
                            "n": size,
                            "raters": raters,
                            "mean_possible": mean_ok,
                            "sd_possible": sd_ok,
                        }
                    )
    return pd.DataFrame(rows)


def raters_of(paper: Paper, row: str) -> int:
    """Whether the block of a row (globals, counts) was printed from whole numbers (1) or from averages of two raters (2).

    The smaller number under which most of the block's means are possible with the stated number of dialogs.
    """
    block = GLOBALS if row in GLOBALS else COUNTS
    fits = {
        raters: sum(bool(totals(cell(paper, name, column).mean, COLUMNS[column], raters)) for name in block for column in COLUMNS)
        for raters in RATERS
    }
    return max(RATERS, key=lambda raters: (fits[raters], -raters))


def possible_moments(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 6, ratings and counts: GRIM and GRIMMER with the stated number of dialogs.

    Raters' codes were not released, so the best verdict is `possible`: codes exist, whole numbers or averages of two raters, that
    have the printed mean and SD. Which of the two a block was printed from is inferred: the one under which most of its means are
    possible. `inconsistent` means that neither kind exists for the stated number of dialogs; rounding is allowed for.
    """
    _, row, column = claim.id.split("-")
    mean, sd = moments(paper, row, column)
    size, usual, rated = COLUMNS[column], raters_of(paper, row), row in GLOBALS
    fitting = [raters for raters in RATERS if possible(mean, sd, size, raters, rated)[1]]
    if usual in fitting:
        return Result("possible", f"The raters' codes were not released. {size} {UNITS[usual]} with this mean and SD exist.")
    what = "this SD with this mean" if possible(mean, sd, size, usual, rated)[0] else "this mean"
    note = f"It does not fit {UNITS[usual]}, which most of the block fits: no {size} of them have {what}."
    if fitting:
        return Result("possible", f"{note} {size} {UNITS[fitting[0]]} with this mean and SD exist.")
    alternatives = [f"{size - 1} {UNITS[raters]}" for raters in RATERS if possible(mean, sd, size - 1, raters, rated)[1]]
    note = f"Neither {' nor '.join(f'{size} {unit}' for unit in UNITS.values())} have {what}; rounding is allowed for."
    note += f" It could come from {' or '.join(alternatives)}." if alternatives else ""
    nearest = round(mean.value * size * usual) / (size * usual)
    recomputed = mean.write(nearest) if not totals(mean, size, usual) else ""
    return Result("inconsistent", note, recomputed, cause="nine_dialogs" if alternatives else "")


def unusual_units(paper: Paper) -> list[str]:
    """The ratings and counts that fit the stated number of dialogs, but not whole numbers (or halves) as the rest of their block does."""
    names = []
    for row in (*GLOBALS, *COUNTS):
        for column, size in COLUMNS.items() if row not in SUMS else ():
            mean, sd = moments(paper, row, column)
            fits = {raters: possible(mean, sd, size, raters, row in GLOBALS)[1] for raters in RATERS}
            if any(fits.values()) and not fits[raters_of(paper, row)]:
                names.append(f"T6-{row}-{column}")
    return names


def follows(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 6, rows that follow from two others (total reflections, technical and relational global): sum or half the sum.

    The printed parts may each be off by half a digit. The SD must be between the values for opposite and for parallel parts.
    """
    _, row, column = claim.id.split("-")
    (first, first_sd), (second, second_sd) = (moments(paper, part, column) for part in SUMS[row])
    share = 1.0 if row == "TR" else 0.5
    recomputed = share * (first.value + second.value)
    slack = share * (first.half + second.half)
    parts = " + ".join(SUMS[row])
    note = f"{'' if share == 1 else 'half of '}{parts}."
    assert claim.sd is not None
    low = share * abs(first_sd.value - second_sd.value) - share * (first_sd.half + second_sd.half)
    high = share * (first_sd.value + second_sd.value + first_sd.half + second_sd.half)
    note += f" The SD must be between {max(low, 0):.2f} and {high:.2f}."
    if row == "TR" and claim.mean.value > volleys(paper, column).value:
        note += f" That is more than the {volleys(paper, column).value:.2f} counselor volleys of Table 4, though a volley gets at most one."
    if not low - claim.sd.half <= claim.sd.value <= high + claim.sd.half:
        return Result("inconsistent", note, claim.mean.write(recomputed))
    if abs(recomputed - claim.mean.value) <= claim.mean.half + slack + 1e-9:
        return Result("reproduced", note, claim.mean.write(recomputed))
    return judged(claim, recomputed, None, note)


def volleys(paper: Paper, column: str) -> Printed:
    """Table 4's mean number of counselor volleys (its rounds) in one of Table 6's columns."""
    return paper[ROUNDS[column]].mean


def ratio_bounds(paper: Paper, row: str, column: str) -> tuple[float, float, float]:
    """The range of the mean of per-dialog ratios, given the printed counts: (lowest, ratio of the means, highest).

    Let N be a dialog's numerator, D its denominator, r = N/D. The ratio of the means is the mean of r weighted by D, so it
    departs from the plain mean of r by cov(D, r)/mean(D). By Cauchy and Schwarz that is at most SD(D)·SD(r)/mean(D) (moments of the
    population; the printed ones are of the sample), and SD(D) is at most the sum of its parts' SDs. Every printed
    number is taken at the end of its rounding interval that makes the bound widest.
    """
    top, bottom = RATIOS[row]
    claim = cell(paper, row, column)
    assert claim.sd is not None
    size = COLUMNS[column]
    parts = {name: moments(paper, name, column) for name in bottom}
    above = sum(moments(paper, name, column)[0].value for name in top)
    below = sum(mean.value for mean, _ in parts.values())
    ratio = above / below
    slack = (
        sum(moments(paper, name, column)[0].half for name in top) + ratio * sum(mean.half for mean, _ in parts.values())
    ) / below
    deviation = sum(sd.value + sd.half for _, sd in parts.values())
    width = deviation * (claim.sd.value + claim.sd.half) / below * (size - 1) / size
    return ratio - width - slack, ratio, ratio + width + slack


def ratio_of_counts(claim: Claim, paper: Paper, evidence: Evidence) -> Result:
    """Table 6, ratios: is the printed mean of per-dialog ratios possible, given the printed counts?

    Only the ratio of the printed mean counts can be recomputed, which is another quantity; the printed mean of ratios departs from
    it by no more than the printed SDs allow (Cauchy and Schwarz; see `ratio_bounds` in the source). So the best verdict is
    `possible`. The bounds hold if a dialog's ratio is made of the raters' mean counts and every dialog has a ratio. Where they are
    broken, codes are looked for (`adherence_codes.csv`) whose ratios, taken rater by rater and then averaged, match all that is printed.
    """
    _, row, column = claim.id.split("-")
    low, ratio, high = ratio_bounds(paper, row, column)
    note = f"Ratio of the printed mean counts: {ratio:.3f}; the mean of per-dialog ratios is between {max(low, 0):.3f} and {high:.3f}"
    if low - claim.mean.half <= claim.mean.value <= high + claim.mean.half:
        return Result("possible", f"{note}. The printed value can be the mean of per-dialog ratios.", claim.mean.write(ratio))
    note += " if a dialog's ratio is made of the raters' mean counts: the printed value is outside these bounds."
    example = adherence_codes(paper, column) if row == "ADH" else None
    if example is None:
        note += " Dialogs without any of these behaviors, counted as 1 or left out, or another formula could explain it."
        return Result("inconsistent", note, claim.mean.write(ratio))
    note += (
        f" If each rater's ratio was averaged, whole-number codes of {example.dialogs} dialogs exist that match every printed mean and SD"
        f" ({EXAMPLE}; the most even that a random search found). In them one rater of a dialog gives {example.share:.0%} of its persuading;"
        f" in {example.alone} dialogs one rater gives up to {example.most} and the other none."
    )
    return Result("possible", note, claim.mean.write(ratio))


@dataclass(frozen=True)
class Example:
    """What an example of two raters' codes looks like: its dialogs, and how unevenly the raters give persuading.

    `share` of it comes from the rater of a dialog who gives more; in `alone` dialogs only one rater gives any, at most `most`.
    """

    dialogs: int
    share: float
    alone: int
    most: int


def adherence_codes(paper: Paper, column: str) -> Example | None:
    """An example of two raters' codes that matches a column's five counts and its MI-adherent ratio; None if there is none.

    `adherence_codes.csv` holds codes that were found by a random search for small disagreement: they are ours, not the authors'.
    They count only if they match: each dialog's count is the mean of two raters', its ratio the mean of the two raters' ratios,
    and mean and sample SD over the dialogs have the printed digits.
    """
    table = pd.read_csv(str(resources.files(__package__) / EXAMPLE))
    table = table[table["column"] == column]
    if table.empty:
        return None
    top, bottom = RATIOS["ADH"]
    table["ADH"] = table[list(top)].sum(axis=1) / table[list(bottom)].sum(axis=1)
    dialogs = table.groupby("dialog")[[*bottom, "ADH"]].mean()
    for row in (*bottom, "ADH"):
        mean, sd = moments(paper, row, column)
        if not (mean.shows(dialogs[row].mean()) and sd.shows(dialogs[row].std(ddof=1))):
            return None
    persuading = table.pivot_table(index="dialog", columns="rater", values="PERS", aggfunc="sum")
    more, less = persuading.max(axis=1), persuading.min(axis=1)
    alone = more[(less == 0) & (more > 0)]
    return Example(len(dialogs), float(more.sum() / (more + less).sum()), len(alone), int(alone.max()))


def welch(paper: Paper, row: str, column: str, other: str = "Real") -> dict[str, Any]:
    """Welch's test from the printed moments of two columns: difference with 95 % interval, t, df, p, Hedges' g."""
    (mean, sd), size = moments(paper, row, column), COLUMNS[column]
    (mean_2, sd_2), size_2 = moments(paper, row, other), COLUMNS[other]
    own, others = (mean.value, sd.value, size), (mean_2.value, sd_2.value, size_2)
    test = stats.ttest_ind_from_stats(*own, *others, equal_var=False)
    degrees = welch_freedom([sd.value**2 / size, sd_2.value**2 / size_2], [size, size_2])
    lo, hi = welch_interval(own, others, 0.95)
    difference = mean.value - mean_2.value
    pooled = math.sqrt(((size - 1) * sd.value**2 + (size_2 - 1) * sd_2.value**2) / (size + size_2 - 2))
    hedges = difference / pooled * (1 - 3 / (4 * (size + size_2) - 9))
    return {
        "indicator": row, "column": column, "against": other, "difference": difference, "lo": lo, "hi": hi,
        "t": float(test.statistic), "df": degrees, "p": float(test.pvalue), "hedges_g": hedges,
    }  # fmt: skip


def comparisons(paper: Paper) -> pd.DataFrame:
    """Welch's test of every indicator of Table 6, each model against the real dialogs, with p adjusted by Holm over all."""
    rows = [
        welch(paper, row, column) for row in (*GLOBALS, *COUNTS, *RATIOS, "TECH", "REL") for column in COLUMNS if column != REAL
    ]
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table["p"].tolist())
    return table.round(4)
