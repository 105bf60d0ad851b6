"""How far raters agree, beyond chance (paper, Methods, Manual Evaluation: kappa between raters 0.69, Pearson correlation 0.84).
It takes codes and ratings as `codes.csv` and `globals.csv` hold them, of people, models and words alike, and gives a table of
measures with intervals, for stage `summary`; it reads and writes no file.

A measure is a function of sums over transcripts: a transcript's share of them is counted once, and what the measure would be
without each transcript, which makes its interval, is one subtraction. Libraries give one value per call, so they stand in the
tests as references and not here: `krippendorff` for alpha, NLTK for kappa, SciPy for r. For ICC there is pingouin only, which
would bring statsmodels, scikit-learn and seaborn.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mi_llm.codebook.coding import Behavior, Global
from mi_llm.statistics import BELOW_ONE, FEWEST, NONE, jackknife_interval

Numbers = NDArray[np.float64]
Score = Callable[[Numbers], Numbers]  # sums, perhaps of many resamples -> the measure of each
COLUMNS = ["measure", "code", "raters", "n", "value", "lo", "hi", "agreement", "note"]
SINGLE = "a single transcript"
FEW = f"fewer than {FEWEST} transcripts"
HANGS = "without one of the transcripts the measure does not exist"
EQUAL = "it is the same without any transcript"
NO_VALUE = {  # why a measure does not exist, where there is more than one transcript
    "kappa": "both raters always gave the same single code",
    "alpha": "the codes do not vary",
    "pearson": "one rater's numbers do not vary",
    "ICC(2,1)": "no variance",
    "ICC(2,k)": "no variance",
}
NEGATIVE = "below 0: the raters differ more within a transcript than the transcripts do"
POOLED_BEHAVIORS, POOLED_GLOBALS = "behaviors", "globals"  # in the column `code`: all codes of that kind together
ONE_CODE = "which code"  # in the column `code`: the codes of volleys that have one each, compared as names
RATINGS = (1, 2, 3, 4, 5)  # of a global
NOTHING = 1e-12  # a variance up to this counts as none


def cohen(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Cohen's kappa of two raters over the same items (Cohen 1960, doi:10.1177/001316446002000104).

    (observed − expected agreement) / (1 − expected); nan where both raters give a single code only.
    """
    size = len(first)
    observed = sum(first_code == second_code for first_code, second_code in zip(first, second, strict=True)) / size
    first_counts, second_counts = Counter(first), Counter(second)
    expected = sum(first_counts[code] * second_counts[code] for code in first_counts) / size**2
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def fleiss(items: Sequence[Sequence[Hashable]]) -> float:
    """Fleiss' kappa (Fleiss 1971, doi:10.1037/h0031619): for each item the codes it was given, by two raters or more.

    Items may have different numbers of raters. Observed agreement is the mean over items of their pairs' agreement; expected
    agreement comes from all codes given.
    """
    rated = [Counter(codes) for codes in items if len(codes) > 1]
    agreement = []
    for counts in rated:
        size = counts.total()
        agreement.append(sum(count * (count - 1) for count in counts.values()) / (size * (size - 1)))
    observed = sum(agreement) / len(agreement)
    together = Counter[Hashable]()
    for counts in rated:
        together.update(counts)
    expected = sum((count / together.total()) ** 2 for count in together.values())
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def quotient(above: Numbers, below: Numbers) -> Numbers:
    """above / below; nan where the denominator is not above `NOTHING`."""
    ratios: Numbers = np.where(below > NOTHING, above, np.nan) / np.where(below > NOTHING, below, 1.0)
    return ratios


def kappas(tables: Numbers) -> Numbers:
    """Cohen's kappa of each of many tables of counts (… x labels x labels); nan where chance alone would agree always."""
    share = quotient(tables, tables.sum(axis=(-2, -1), keepdims=True))
    observed = np.trace(share, axis1=-2, axis2=-1)
    expected = (share.sum(axis=-1) * share.sum(axis=-2)).sum(axis=-1)
    return quotient(observed - expected, 1 - expected)


def coincidences(values: Numbers, levels: int) -> Numbers:
    """Krippendorff's coincidences of units (… x raters, codes 0 to levels - 1, nan where a rater gave none).

    In a unit with m codes every ordered pair counts 1/(m - 1). Returns … x levels x levels; 0 for units with one code or none.
    """
    counts = (values[..., None] == np.arange(levels)).sum(axis=-2).astype(float)
    pairs = counts[..., :, None] * counts[..., None, :] - counts[..., :, None] * np.eye(levels)
    tables: Numbers = pairs / np.maximum(counts.sum(axis=-1) - 1, 1)[..., None, None]
    return tables


def alphas(tables: Numbers, *, ordinal: bool = False) -> Numbers:
    """Krippendorff's alpha of each of many tables of summed coincidences (… x levels x levels), nominal or ordinal.

    1 - observed / expected disagreement (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability); nan without variation.
    """
    marginals = tables.sum(axis=-1)
    size = marginals.sum(axis=-1)
    if ordinal:
        middle = marginals.cumsum(axis=-1) - marginals / 2
        distance = (middle[..., :, None] - middle[..., None, :]) ** 2
    else:
        distance = 1 - np.eye(marginals.shape[-1])
    observed = (tables * distance).sum(axis=(-2, -1))
    expected = (marginals[..., :, None] * marginals[..., None, :] * distance).sum(axis=(-2, -1))
    return 1 - quotient((size - 1) * observed, expected)


def icc_sums(scores: Numbers) -> Numbers:
    """What an ICC needs of each transcript (transcripts x raters): 1, each score, the sum of squares, the square of the sum."""
    ones = np.ones((len(scores), 1))
    squares = (scores**2).sum(axis=1, keepdims=True)
    return np.hstack([ones, scores, squares, scores.sum(axis=1, keepdims=True) ** 2])


def iccs(sums: Numbers, *, mean: bool = False) -> Numbers:
    """ICC(2,1), or ICC(2,k) of the raters' mean (Shrout & Fleiss 1979, doi:10.1037/0033-2909.86.2.420), of summed `icc_sums`.

    Two-way random effects, absolute agreement; nan for fewer than two transcripts, or where the variance comes out as none;
    negative, without a lower bound, where the raters differ more within a transcript than the transcripts do.
    """
    n, by_rater, squares, of_transcripts = sums[..., 0], sums[..., 1:-2], sums[..., -2], sums[..., -1]
    k = by_rater.shape[-1]
    correction = quotient(by_rater.sum(axis=-1) ** 2, n * k)
    transcripts = of_transcripts / k - correction
    raters = quotient((by_rater**2).sum(axis=-1), n) - correction
    rest = squares - correction - transcripts - raters
    between, among, error = quotient(transcripts, n - 1), raters / (k - 1), quotient(rest, (n - 1) * (k - 1))
    bias = quotient(among - error, n)
    denominator = between + bias if mean else between + (k - 1) * error + k * bias
    return quotient(between - error, denominator)


def pearson_sums(pairs: Numbers) -> Numbers:
    """What a correlation needs of each pair (… x 2): 1, x, y, x², y², xy."""
    x, y = pairs[..., 0], pairs[..., 1]
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)


def pearsons(sums: Numbers) -> Numbers:
    """Pearson's r of summed `pearson_sums`; nan where either does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    return quotient(n * xy - x * y, np.sqrt(spread))


@dataclass(frozen=True)
class Estimate:
    """A measure and its interval; `note` says why there is none."""

    value: float
    lo: float
    hi: float
    note: str = ""


def estimate(statistics: Numbers, score: Score, confidence: float, least: float = -np.inf) -> Estimate:
    """The `score` of the statistics (transcripts x …) summed over transcripts, and its interval.

    The interval is the jackknife's over whole transcripts, since the volleys of one depend on each other, with Student's t and on
    the scale −ln(1 − measure): no measure here exceeds 1, and some have a `least` value.
    """
    total = statistics.sum(axis=0)
    value, left_out = float(score(total)), np.asarray(score(total - statistics))
    if np.isnan(value):
        return Estimate(value, *NONE)
    lo, hi = jackknife_interval(value, [left_out], confidence, BELOW_ONE) if value < 1 - NOTHING else NONE
    few, hangs = len(statistics) < FEWEST, bool(np.isnan(left_out).any())
    note = "" if lo == lo else f"no interval: {FEW if few else HANGS if hangs else EQUAL}"  # noqa: PLR0124 — NaN
    return Estimate(value, max(lo, least) if lo == lo else lo, hi, note)  # noqa: PLR0124 — NaN


Row = tuple[str, str, int, Estimate, float]  # measure, code, n, estimate, percent agreement (0 to 1)


@dataclass(frozen=True)
class Codings:
    """The codes raters gave the same units: `values` (units x raters x codes, nan where none), and the packet of each unit."""

    raters: tuple[str, ...]
    packets: NDArray[np.str_]
    values: Numbers
    codes: tuple[str, ...]

    def of(self, raters: Sequence[str], least: int) -> "Codings":
        """The codings of some raters, of the units that at least `least` of them coded."""
        values = self.values[:, [self.raters.index(rater) for rater in raters]]
        enough = (~np.isnan(values).any(axis=2)).sum(axis=1) >= least
        return Codings(tuple(raters), self.packets[enough], values[enough], self.codes)

    def summed(self, statistics: Numbers) -> Numbers:
        """Statistics of units (units x …), summed by packet."""
        names, indices = np.unique(self.packets, return_inverse=True)
        sums = np.zeros((len(names), *statistics.shape[1:]))
        np.add.at(sums, indices, statistics)
        return sums


Measures = Callable[[Codings, float], Iterator[Row]]  # of some raters' codings, with a confidence


def gathered(frame: pd.DataFrame, unit: Sequence[str], codes: Sequence[str]) -> Codings:
    """The rows of a CSV as an array. A unit is coded by a rater who has a row for it.

    With a column `rating` a code's value is its rating, else whether it was seen.
    """
    frame = frame.astype({"rater": str, "packet": str})
    keys = list(frame[list(unit)].itertuples(index=False, name=None))
    units, raters = sorted(set(keys)), sorted(set(frame["rater"]))
    rated = "rating" in frame
    values = np.full((len(units), len(raters), len(codes)), np.nan)
    row, column = {key: index for index, key in enumerate(units)}, {rater: index for index, rater in enumerate(raters)}
    depth = {code: index for index, code in enumerate(codes)}
    row_values = frame["rating"] if rated else np.ones(len(frame))
    for key, rater, code, value in zip(keys, frame["rater"], frame["code"].fillna(""), row_values, strict=True):
        cell = values[row[key], column[rater]]
        if not rated:
            cell[np.isnan(cell)] = 0
        if code:
            cell[depth[code]] = value
    return Codings(tuple(raters), np.array([packet for packet, *_ in units], dtype=np.str_), values, tuple(map(str, codes)))


def table(
    codes: pd.DataFrame,
    ratings: pd.DataFrame,
    confidence: float = 0.95,
    *,
    behaviors: Sequence[str] = tuple(Behavior),
    rated: Sequence[str] = tuple(Global),
    scale: Sequence[float] = RATINGS,
) -> pd.DataFrame:
    """All measures for each pair of raters, and for all raters if there are more than two: columns as `COLUMNS`.

    `codes` has the columns rater, packet, volley, code (empty: coded, nothing there), `ratings` rater, packet, code, rating.
    `behaviors` are the codes that may occur, `rated` those that are rated, `scale` the ratings in ascending order. Only what two
    raters or more coded enters, so a single rater gives no row. `n` counts what a value rests on:

    - `kappa` (two raters) and `alpha` (nominal): whether a volley holds the behavior; n volleys, pooled n volleys x behaviors.
    - `alpha` (ordinal) of a global's ratings; n transcripts.
    - `ICC(2,1)`, `ICC(2,k)`, `pearson` (two raters): a behavior's count, or a global's rating, per transcript; n transcripts that
      all of these raters coded. `pearson` of all globals pooled, as the paper has it: n ratings.

    `agreement` is the share of equal codes, ratings or counts among all pairs of raters, which exists where a measure corrected
    for chance does not: raters who agree always, on a single code, have agreement 1 and no kappa. `note` says why a value or an
    interval is missing, and what a value below the measure's range means.
    """
    of_codes = measured(gathered(codes, ("packet", "volley"), behaviors), of_behaviors, confidence)
    of_ratings = measured(gathered(ratings, ("packet",), rated), partial(of_globals, scale=scale), confidence)
    return pd.DataFrame([*of_codes, *of_ratings], columns=COLUMNS).round(4)


def labels(codes: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """κ (two raters) and nominal α of which code a volley got, for codes that exclude each other: columns as `COLUMNS`.

    Of `codes` (rater, packet, volley, code) no rater may have two rows of one volley; an empty code counts as a code.
    """
    present = sorted(set(codes["code"]))
    numbered = codes.assign(rating=[present.index(code) for code in codes["code"]], code=ONE_CODE)
    codings = gathered(numbered, ("packet", "volley"), [ONE_CODE])
    return pd.DataFrame(measured(codings, partial(of_labels, levels=len(present)), confidence), columns=COLUMNS).round(4)


def measured(codings: Codings, measures: Measures, confidence: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of each pair of raters who coded the same, and of all raters if there are more than two."""
    all_raters = [codings.raters] if len(codings.raters) > 2 else []
    for raters in (*combinations(codings.raters, 2), *all_raters):
        selected = codings.of(raters, 2)
        for measure, code, n, estimated, agreement in measures(selected, confidence) if len(selected.packets) else ():
            row = {"measure": measure, "code": str(code), "raters": ", ".join(raters), "n": n, **vars(estimated)}
            yield row | {"agreement": agreement, "note": remark(measure, estimated, len(set(selected.packets)))}


def remark(measure: str, estimated: Estimate, transcripts: int) -> str:
    """What a reader must know of a value: why it does not exist, what it means below 0, why it has no interval."""
    if np.isnan(estimated.value):
        alone = transcripts < 2 and measure not in ("alpha", "kappa")
        return f"no value: {SINGLE if alone else NO_VALUE[measure]}"
    negative = NEGATIVE if estimated.value < 0 and measure.startswith("ICC") else ""
    return "; ".join(filter(None, (negative, estimated.note)))


def equal(tables: Numbers) -> float:
    """The share of pairs of equal codes in a table of counts, or of coincidences (labels x labels)."""
    return float(np.trace(tables) / tables.sum())


def equal_numbers(scores: Numbers) -> float:
    """The share of equal numbers among all pairs of raters (transcripts x raters)."""
    return float(np.mean([scores[:, first] == scores[:, second] for first, second in combinations(range(scores.shape[1]), 2)]))


def of_behaviors(codings: Codings, confidence: float) -> Iterator[Row]:
    """The measures of behaviors; see `table`."""
    if not codings.codes:
        return
    coded = codings.values.swapaxes(1, 2)  # units x behaviors x raters
    for measure, tables, score, least in nominal(coded, 2):
        summed = codings.summed(tables)
        for index, code in enumerate(codings.codes):
            of_code = summed[:, index]
            yield measure, code, len(coded), estimate(of_code, score, confidence, least), equal(of_code.sum(axis=0))
        pooled = summed.sum(axis=1)
        n = len(coded) * len(codings.codes)
        yield measure, POOLED_BEHAVIORS, n, estimate(pooled, score, confidence, least), equal(pooled.sum(axis=0))
    complete = codings.of(codings.raters, len(codings.raters))
    yield from of_numbers(complete.summed(complete.values), codings.codes, confidence)


def of_labels(codings: Codings, confidence: float, levels: int) -> Iterator[Row]:
    """The measures of which code a volley got; see `labels`."""
    given = codings.values[:, :, 0]
    for measure, tables, score, least in nominal(given, levels):
        summed = codings.summed(tables)
        yield measure, ONE_CODE, len(given), estimate(summed, score, confidence, least), equal(summed.sum(axis=0))


def nominal(given: Numbers, levels: int) -> Iterator[tuple[str, Numbers, Score, float]]:
    """Yield α and, of two raters, κ of codes from 0 to levels - 1 (… x raters): name, table of each unit, score, least value."""
    yield "alpha", coincidences(given, levels), alphas, -np.inf
    if given.shape[-1] == 2:
        seen = given[..., None] == np.arange(levels)
        yield "kappa", (seen[..., 0, :, None] & seen[..., 1, None, :]).astype(float), kappas, -1


def of_globals(codings: Codings, confidence: float, scale: Sequence[float]) -> Iterator[Row]:
    """The measures of globals; see `table`."""
    levels = np.where(np.isnan(codings.values), np.nan, np.searchsorted(scale, codings.values))
    tables = coincidences(levels.swapaxes(1, 2), len(scale))
    for index, code in enumerate(codings.codes):
        of_code = tables[:, index]
        estimated = estimate(of_code, partial(alphas, ordinal=True), confidence)
        yield "alpha", code, len(tables), estimated, equal(of_code.sum(axis=0))
    complete = codings.of(codings.raters, len(codings.raters)).values
    yield from of_numbers(complete, codings.codes, confidence)
    if len(codings.raters) == 2:
        sums = pearson_sums(complete.swapaxes(1, 2)).sum(axis=1)
        paired = complete.swapaxes(1, 2).reshape(-1, 2)
        yield "pearson", POOLED_GLOBALS, len(paired), estimate(sums, pearsons, confidence, least=-1), equal_numbers(paired)


def of_numbers(values: Numbers, codes: Sequence[str], confidence: float) -> Iterator[Row]:
    """The measures of one number per transcript (transcripts x raters x codes), code by code; none without a transcript."""
    if not len(values):
        return
    for index, code in enumerate(codes):
        scores = values[:, :, index]
        n, agreement = len(scores), equal_numbers(scores)
        yield "ICC(2,1)", code, n, estimate(icc_sums(scores), iccs, confidence), agreement
        yield "ICC(2,k)", code, n, estimate(icc_sums(scores), partial(iccs, mean=True), confidence), agreement
        if scores.shape[1] == 2:
            yield "pearson", code, n, estimate(pearson_sums(scores), pearsons, confidence, least=-1), agreement
