"""How far raters agree, beyond chance (paper, Methods, Manual Evaluation: kappa between raters 0.69, Pearson correlation 0.84).
It takes codes and ratings as `codes.csv` and `globals.csv` hold them, of people, models and words alike, and gives a table of
measures with bootstrap intervals, for stage `summary`; it reads and writes no file.

A measure is a function of sums over transcripts: a transcript's share of them is counted once, and a bootstrap's thousands of
values come from one matrix product. Libraries give one value a call, so they stand in the tests as references and not here:
`krippendorff` for alpha, NLTK for kappa, SciPy for r. For ICC there is pingouin only, which would bring statsmodels, scikit-learn
and seaborn.
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

from mi_llm.codebook.coding import Behaviour, Global

Numbers = NDArray[np.float64]
Score = Callable[[Numbers], Numbers]  # of sums, perhaps many: their measure
COLUMNS = ["measure", "code", "raters", "n", "value", "lo", "hi"]
POOLED_BEHAVIOURS, POOLED_GLOBALS = "behaviours", "globals"  # in the column `code`: all codes of that kind together
RATINGS = 5  # a global is rated from 1 to so many
NOTHING = 1e-12  # a variance below this is that of numbers without any


def cohen(first: Sequence[Hashable], second: Sequence[Hashable]) -> float:
    """Cohen's kappa of two raters over the same items (Cohen 1960, doi:10.1177/001316446002000104).

    (observed − expected agreement) / (1 − expected); nan where both raters give one code only.
    """
    size = len(first)
    observed = sum(one == other for one, other in zip(first, second, strict=True)) / size
    ones, others = Counter(first), Counter(second)
    expected = sum(ones[code] * others[code] for code in ones) / size**2
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def fleiss(items: Sequence[Sequence[Hashable]]) -> float:
    """Fleiss' kappa (Fleiss 1971, doi:10.1037/h0031619): for each item the codes it was given, by two raters or more.

    Items may have different numbers of raters; each weighs by its pairs' mean agreement, and chance by all codes given.
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
    """above / below; nan where the denominator is nothing, or less."""
    found: Numbers = np.where(below > NOTHING, above, np.nan) / np.where(below > NOTHING, below, 1.0)
    return found


def kappas(tables: Numbers) -> Numbers:
    """Cohen's kappa of each of many tables of counts (… x labels x labels); nan where chance alone would agree always."""
    share = quotient(tables, tables.sum(axis=(-2, -1), keepdims=True))
    observed = np.trace(share, axis1=-2, axis2=-1)
    expected = (share.sum(axis=-1) * share.sum(axis=-2)).sum(axis=-1)
    return quotient(observed - expected, 1 - expected)


def coincidences(values: Numbers, levels: int) -> Numbers:
    """Krippendorff's coincidences of units (… x raters, codes 0 to levels - 1, nan where a rater gave none).

    Of a unit with m codes every ordered pair counts 1/(m - 1). Gives … x levels x levels; 0 for units with one code or none.
    """
    given = (values[..., None] == np.arange(levels)).sum(axis=-2).astype(float)
    pairs = given[..., :, None] * given[..., None, :] - given[..., :, None] * np.eye(levels)
    found: Numbers = pairs / np.maximum(given.sum(axis=-1) - 1, 1)[..., None, None]
    return found


def alphas(tables: Numbers, *, ordinal: bool = False) -> Numbers:
    """Krippendorff's alpha of each of many tables of summed coincidences (… x levels x levels), nominal or ordinal.

    1 - observed / expected disagreement (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability); nan without variation.
    """
    given = tables.sum(axis=-1)
    size = given.sum(axis=-1)
    if ordinal:
        middle = given.cumsum(axis=-1) - given / 2
        distance = (middle[..., :, None] - middle[..., None, :]) ** 2
    else:
        distance = 1 - np.eye(given.shape[-1])
    observed = (tables * distance).sum(axis=(-2, -1))
    expected = (given[..., :, None] * given[..., None, :] * distance).sum(axis=(-2, -1))
    return 1 - quotient((size - 1) * observed, expected)


def icc_sums(scores: Numbers) -> Numbers:
    """What an ICC needs of each transcript (transcripts x raters): 1, each score, the scores' squares, their sum's square."""
    ones = np.ones((len(scores), 1))
    squares = (scores**2).sum(axis=1, keepdims=True)
    return np.hstack([ones, scores, squares, scores.sum(axis=1, keepdims=True) ** 2])


def iccs(sums: Numbers, *, mean: bool = False) -> Numbers:
    """ICC(2,1), or ICC(2,k) of the raters' mean (Shrout & Fleiss 1979, doi:10.1037/0033-2909.86.2.420), of summed `icc_sums`.

    Two-way random effects, absolute agreement; nan for fewer than two transcripts, or where the variance comes out as none.
    """
    n, by_rater, squares, of_transcripts = sums[..., 0], sums[..., 1:-2], sums[..., -2], sums[..., -1]
    k = by_rater.shape[-1]
    correction = quotient(by_rater.sum(axis=-1) ** 2, n * k)
    transcripts = of_transcripts / k - correction
    raters = quotient((by_rater**2).sum(axis=-1), n) - correction
    rest = squares - correction - transcripts - raters
    between, among, error = quotient(transcripts, n - 1), raters / (k - 1), quotient(rest, (n - 1) * (k - 1))
    bias = quotient(among - error, n)
    below = between + bias if mean else between + (k - 1) * error + k * bias
    return quotient(between - error, below)


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
    """A measure and its percentile interval."""

    value: float
    lo: float
    hi: float


class Bootstrap:
    """Resamples of whole transcripts (Davison & Hinkley 1997, section 3.8): what is said in one belongs together.

    One set of resamples serves every measure of the same transcripts. `weights` (1 + resamples x transcripts) says how often each
    transcript is in; the first row is the transcripts as they are.
    """

    def __init__(self, transcripts: int, resamples: int, confidence: float, seed: int) -> None:
        drawn = np.random.default_rng(seed).integers(0, transcripts, size=(resamples, transcripts))
        offsets = transcripts * np.arange(resamples)[:, None]
        often = np.bincount((drawn + offsets).ravel(), minlength=resamples * transcripts).reshape(resamples, transcripts)
        self.weights: Numbers = np.vstack([np.ones(transcripts), often]).astype(float)
        self.tails = (50 * (1 - confidence), 50 * (1 + confidence))

    def estimate(self, statistics: Numbers, score: Score) -> Estimate:
        """What `score` makes of the statistics (transcripts x …) summed, and its interval."""
        sums = self.weights @ statistics.reshape(len(statistics), -1)
        return self.interval(score(sums.reshape(len(sums), *statistics.shape[1:])))

    def interval(self, values: Numbers) -> Estimate:
        """A measure (1 + resamples) and its interval. Resamples in which it does not exist are left out.

        A single transcript, or a measure that does not exist, has no interval.
        """
        value, resampled = float(values[0]), values[1:][~np.isnan(values[1:])]
        if self.weights.shape[1] < 2 or np.isnan(value) or not len(resampled):
            return Estimate(value, np.nan, np.nan)
        lo, hi = np.percentile(resampled, self.tails)
        return Estimate(value, float(lo), float(hi))


Draw = Callable[[int], Bootstrap]  # so many transcripts: their resamples
Row = tuple[str, str, int, Estimate]  # measure, code, n, estimate


@dataclass(frozen=True)
class Codings:
    """What raters gave the same units: `values` (units x raters x codes, nan where none), and the packet of each unit."""

    raters: tuple[str, ...]
    packets: NDArray[np.str_]
    values: Numbers

    @property
    def coded(self) -> NDArray[np.bool_]:
        """Who coded which unit (units x raters)."""
        return np.asarray(~np.isnan(self.values).any(axis=2))

    def of(self, raters: Sequence[str], least: int) -> "Codings":
        """What some raters gave the units that so many of them coded."""
        mine = Codings(tuple(raters), self.packets, self.values[:, [self.raters.index(rater) for rater in raters]])
        enough = mine.coded.sum(axis=1) >= least
        return Codings(mine.raters, mine.packets[enough], mine.values[enough])

    def summed(self, statistics: Numbers) -> Numbers:
        """Statistics of units (units x …), summed by packet."""
        names, places = np.unique(self.packets, return_inverse=True)
        found = np.zeros((len(names), *statistics.shape[1:]))
        np.add.at(found, places, statistics)
        return found


def gathered(frame: pd.DataFrame, unit: Sequence[str], codes: Sequence[str]) -> Codings:
    """The rows of a CSV as an array. A unit is coded by a rater who has a row for it.

    With a column `rating` a code's value is its rating, else whether it was seen.
    """
    frame = frame.astype({"rater": str, "packet": str})
    keys = list(frame[list(unit)].itertuples(index=False, name=None))
    units, raters = sorted(set(keys)), sorted(set(frame["rater"]))
    rated = "rating" in frame
    values = np.full((len(units), len(raters), len(codes)), np.nan)
    row, column = {key: place for place, key in enumerate(units)}, {rater: place for place, rater in enumerate(raters)}
    depth = {code: place for place, code in enumerate(codes)}
    given = frame["rating"] if rated else np.ones(len(frame))
    for key, rater, code, value in zip(keys, frame["rater"], frame["code"].fillna(""), given, strict=True):
        place = values[row[key], column[rater]]
        if not rated:
            place[np.isnan(place)] = 0
        if code:
            place[depth[code]] = value
    return Codings(tuple(raters), np.array([packet for packet, *_ in units], dtype=np.str_), values)


def table(
    codes: pd.DataFrame, ratings: pd.DataFrame, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 1
) -> pd.DataFrame:
    """All measures of every two raters, and of all together where there are more: columns as `COLUMNS`, no rows without a pair.

    `codes` has the columns rater, packet, volley, code (empty: coded, nothing there), `ratings` rater, packet, code, rating.
    Only what two raters or more coded enters. `n` counts what a value rests on:

    - `kappa` (two raters) and `alpha` (nominal): whether a volley holds the behavior; n volleys, pooled n volleys x behaviors.
    - `alpha` (ordinal) of a global's ratings; n transcripts.
    - `ICC(2,1)`, `ICC(2,k)`, `pearson` (two raters): a behavior's count, or a global's rating, a transcript; n transcripts that
      all of these raters coded. `pearson` of all globals pooled, as the paper has it: n ratings.
    """
    draw = partial(Bootstrap, resamples=resamples, confidence=confidence, seed=seed)
    kinds: tuple[tuple[Codings, Callable[[Codings, Draw], Iterator[Row]]], ...] = (
        (gathered(codes, ("packet", "volley"), list(Behaviour)), of_behaviours),
        (gathered(ratings, ("packet",), list(Global)), of_globals),
    )
    rows: list[dict[str, Any]] = []
    for found, measures in kinds:
        together = [found.raters] if len(found.raters) > 2 else []
        for raters in (*combinations(found.raters, 2), *together):
            mine = found.of(raters, 2)
            for measure, code, n, estimate in measures(mine, draw) if len(mine.packets) else ():
                rows.append({"measure": measure, "code": str(code), "raters": ", ".join(raters), "n": n, **vars(estimate)})
    return pd.DataFrame(rows, columns=COLUMNS).round(4)


def of_behaviours(mine: Codings, draw: Draw) -> Iterator[Row]:
    """The measures of behaviors; see `table`."""
    coded = mine.values.swapaxes(1, 2)  # units x behaviors x raters
    measures: dict[str, tuple[Numbers, Score]] = {"alpha": (coincidences(coded, 2), alphas)}
    if len(mine.raters) == 2:
        seen = coded[..., None] == np.arange(2)
        measures["kappa"] = ((seen[:, :, 0, :, None] & seen[:, :, 1, None, :]).astype(float), kappas)
    for measure, (tables, score) in measures.items():
        summed = mine.summed(tables)
        bootstrap = draw(len(summed))
        for place, code in enumerate(Behaviour):
            yield measure, code, len(coded), bootstrap.estimate(summed[:, place], score)
        yield measure, POOLED_BEHAVIOURS, len(coded) * len(Behaviour), bootstrap.estimate(summed.sum(axis=1), score)
    whole = mine.of(mine.raters, len(mine.raters))
    yield from of_numbers(whole.summed(whole.values), list(Behaviour), draw)


def of_globals(mine: Codings, draw: Draw) -> Iterator[Row]:
    """The measures of globals; see `table`."""
    tables = coincidences(mine.values.swapaxes(1, 2) - 1, RATINGS)
    bootstrap = draw(len(tables))
    for place, code in enumerate(Global):
        yield "alpha", code, len(tables), bootstrap.estimate(tables[:, place], partial(alphas, ordinal=True))
    whole = mine.of(mine.raters, len(mine.raters)).values
    yield from of_numbers(whole, list(Global), draw)
    if len(mine.raters) == 2:
        sums = pearson_sums(whole.swapaxes(1, 2)).sum(axis=1)
        yield "pearson", POOLED_GLOBALS, len(whole) * len(Global), draw(len(whole)).estimate(sums, pearsons)


def of_numbers(values: Numbers, codes: Sequence[str], draw: Draw) -> Iterator[Row]:
    """The measures of numbers a transcript (transcripts x raters x codes), code by code; none without a transcript."""
    if not len(values):
        return
    bootstrap = draw(len(values))
    for place, code in enumerate(codes):
        scores = values[:, :, place]
        yield "ICC(2,1)", code, len(scores), bootstrap.estimate(icc_sums(scores), iccs)
        yield "ICC(2,k)", code, len(scores), bootstrap.estimate(icc_sums(scores), partial(iccs, mean=True))
        if scores.shape[1] == 2:
            yield "pearson", code, len(scores), bootstrap.estimate(pearson_sums(scores), pearsons)
