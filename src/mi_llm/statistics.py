"""Uncertainty of scores: rounds of one dialog are not independent, so whole dialogs are resampled and whole dialogs swapped.

Four questions are answered here: between which values a mean or a measure lies (bootstrap-t and jackknife over dialogs, exact
limits where nothing was counted), whether one of two systems is better by more than chance (paired approximate randomization,
Holm's correction), by how much (effect sizes), and what a test of so many dialogs could find at all (power).
docs/statistics.md has the coverage of these intervals, simulated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, islice, product
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Numbers = NDArray[np.float64]
SLACK = 1e-9  # a smaller standard deviation is rounding: the numbers are equal
FEWEST = 5  # dialogs: of fewer, the values are shown, without an interval and without a test
NONE = (float("nan"), float("nan"))  # no interval
SIMULATIONS = 1000  # experiments behind each power
RELABELINGS = 5000  # a power's test tries all relabelings up to so many, else draws so many


@dataclass(frozen=True)
class Estimate:
    """A mean over samples, or a score of them all, with its interval: NaN for fewer than `FEWEST` dialogs, or too alike."""

    mean: float
    lo: float
    hi: float

    def rounded(self) -> dict[str, float]:
        """For JSON and CSV, to 4 decimals."""
        return {"mean": round(self.mean, 4), "lo": round(self.lo, 4), "hi": round(self.hi, 4)}


@dataclass(frozen=True)
class Scale:
    """A scale on which a measure's distribution is nearly symmetric; `slope` is the derivative of `there`."""

    there: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]


PLAIN = Scale(lambda value: value, lambda value: value, lambda value: 1.0)
BELOW_ONE = Scale(  # kappa, alpha, ICC, r: at most 1
    lambda value: -float(np.log1p(-value)), lambda value: -float(np.expm1(-value)), lambda value: 1 / (1 - value)
)
SHARE = Scale(  # the AUC: from 0 to 1
    lambda value: float(np.log(value / (1 - value))),
    lambda value: float(1 / (1 + np.exp(-value))),
    lambda value: 1 / (value * (1 - value)),
)


class Dialogs:
    """Which samples belong to which dialog, so that values of samples can be summed by dialog."""

    def __init__(self, dialogs: Sequence[str]) -> None:
        names, self.dialog_of_sample = np.unique(np.asarray(dialogs), return_inverse=True)
        self.count = len(names)
        self.sizes = np.bincount(self.dialog_of_sample)

    def sums(self, values: Sequence[float]) -> Numbers:
        """The sum of each dialog's values [dialogs]; `values` [samples]."""
        return np.bincount(self.dialog_of_sample, weights=np.asarray(values, dtype=float)).astype(np.float64)


class DialogBootstrap:
    """Bootstrap-t intervals from resampling dialogs (clusters) with replacement (Davison & Hinkley 1997, sections 3.8 and 5.2).

    `dialogs` names the dialog of each sample. One set of resamples serves every metric, so differences are paired.
    """

    def __init__(self, dialogs: Sequence[str], resamples: int, confidence: float, seed: int) -> None:
        self.dialogs, self.confidence = Dialogs(dialogs), confidence
        count = self.dialogs.count
        drawn = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
        offsets = count * np.arange(resamples)[:, None]
        often = np.bincount((drawn + offsets).ravel(), minlength=resamples * count).reshape(resamples, count)
        self.weights = often.astype(np.float64)  # how often each dialog is in each resample

    def estimate(self, values: Sequence[float]) -> Estimate:
        """Mean of `values` [samples], and its interval over resampled dialogs.

        Each resample's mean is taken in units of its own standard error (a ratio of sums, linearized). Where more than a tail of
        the resamples have no such error, since their dialogs are equal, the dialogs are too alike for an interval.
        """
        sums, sizes = self.dialogs.sums(values), self.dialogs.sizes.astype(np.float64)
        mean = float(sums.sum() / sizes.sum())
        rest = sums - mean * sizes
        moments = np.stack([rest, sizes, rest**2, rest * sizes, sizes**2], axis=1)
        _, error = deviations(moments.sum(axis=0), len(sums))
        if len(sums) < FEWEST or error <= SLACK:
            return Estimate(mean, *NONE)
        distances, errors = deviations(self.weights @ moments, len(sums))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.nan_to_num(distances / np.where(errors > 1e-6 * error, errors, 0), posinf=np.inf, neginf=-np.inf)
        tails = [(1 - self.confidence) / 2, (1 + self.confidence) / 2]
        low, high = np.quantile(ratios, tails, method="inverted_cdf")
        if not np.isfinite([low, high]).all():
            return Estimate(mean, *NONE)
        return Estimate(mean, float(mean - high * error), float(mean - low * error))

    def estimate_pooled(self, counts: NDArray[np.int64], score: Callable[[list[int]], float]) -> Estimate:
        """The score that `score` makes of the sum of all samples' `counts` (samples x counts), and its jackknife interval."""
        sums = np.stack([self.dialogs.sums(column) for column in counts.T], axis=1).astype(np.int64)
        total = sums.sum(axis=0)
        value = score(total.tolist())
        left_out = np.array([score(row) for row in (total - sums).tolist()])
        return Estimate(value, *jackknife_interval(value, [left_out], self.confidence))


def deviations(moments: Numbers, count: int) -> tuple[Numbers, Numbers]:
    """How far means of resampled dialogs lie from that of all, and their standard errors.

    `moments` (… x 5) are sums over `count` dialogs of r, n, r², rn, n²: n is a dialog's size, r its sum less n times the mean.
    """
    rest, sizes, squares, products, sizes_squared = np.moveaxis(moments, -1, 0)
    distance = rest / sizes
    variance = np.maximum(squares - 2 * distance * products + distance**2 * sizes_squared, 0) * count / max(count - 1, 1)
    return distance, np.sqrt(variance) / sizes


def jackknife_interval(value: float, left_out: Sequence[Numbers], confidence: float, scale: Scale = PLAIN) -> tuple[float, float]:
    """Student's interval with the jackknife's standard error (Efron & Tibshirani 1993, section 11.5), on a measure's scale.

    `left_out`: the measure without each dialog in turn, one array for each independent sample of dialogs (degrees of freedom of
    several: Welch 1947). NaN for fewer than `FEWEST` dialogs in a sample, where a left-out measure does not exist, or all agree.
    """
    sizes = [len(values) for values in left_out]
    if min(sizes) < FEWEST or any(np.isnan(values).any() for values in left_out):
        return NONE
    variances = [(n - 1) / n * float(((values - values.mean()) ** 2).sum()) for n, values in zip(sizes, left_out, strict=True)]
    error = sum(variances) ** 0.5
    if not error > SLACK:
        return NONE
    t = float(stats.t.ppf((1 + confidence) / 2, welch_freedom(variances, sizes)))
    middle, half = scale.there(value), t * error * scale.slope(value)
    return scale.back(middle - half), scale.back(middle + half)


def limit_of_none(dialogs: int, confidence: float) -> float:
    """The exact upper limit of the mean count per dialog where no dialog has any (Garwood 1936).

    It is −ln(1 − p) of Clopper and Pearson's limit p of the share of dialogs that have one: about 3.7 / `dialogs` at 95 %.
    """
    share = stats.binomtest(0, dialogs).proportion_ci(confidence, "exact").high
    return -float(np.log1p(-share))


def welch_freedom(variances: Sequence[float], sizes: Sequence[int]) -> float:
    """Degrees of freedom of a difference of means of independent samples (Welch 1947).

    `variances`: the squared standard error of each sample's mean; `sizes`: their n. Of a single sample it is n - 1.
    """
    return sum(variances) ** 2 / sum(variance**2 / (n - 1) for variance, n in zip(variances, sizes, strict=True))


def welch_interval(first: tuple[float, float, int], second: tuple[float, float, int], confidence: float) -> tuple[float, float]:
    """The interval of the difference of two means, each given as mean, sample SD, n: error √(s₁²/n₁ + s₂²/n₂) (Welch 1947).

    NaN for fewer than `FEWEST` dialogs on a side, or where neither varies.
    """
    (mean, sd, n), (other_mean, other_sd, other_n) = first, second
    variances = sd**2 / n, other_sd**2 / other_n
    if min(n, other_n) < FEWEST or not sum(variances) > SLACK:
        return NONE
    half = float(stats.t.ppf((1 + confidence) / 2, welch_freedom(variances, [n, other_n]))) * sum(variances) ** 0.5
    return mean - other_mean - half, mean - other_mean + half


def p_of_swaps(differences: Sequence[float], dialogs: Sequence[str], resamples: int, seed: int) -> float:
    """Two-sided p that differences (first system minus second, sample by sample) have mean 0: paired approximate randomization.

    If two systems are alike, their scores of a dialog may change places (Noreen 1989), which turns the sign of the dialog's sum.
    The statistic is the absolute sum over samples. Where there are at most `resamples` ways to swap dialogs, all are tried, else
    as many are drawn, and the data as they are count as one of them (Phipson & Smyth 2010). NaN for fewer than `FEWEST` dialogs.
    """
    sums = Dialogs(dialogs).sums(differences)
    if len(sums) < FEWEST:
        return float("nan")
    result = stats.permutation_test(
        (sums,),
        absolute_sum,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def absolute_sum(values: Numbers, axis: int) -> Numbers:
    """The statistic of swapped dialogs; rounded, since equal sums in another order differ in their last digits."""
    return np.asarray(np.abs(values.sum(axis=axis)).round(9))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979) of a family of m p-values: the i-th smallest times m - i + 1, never falling, at most 1.

    A NaN stands for a test that was not made: it stays NaN and does not count.
    """
    corrected = [float("nan")] * len(p_values)
    made = [index for index, p in enumerate(p_values) if p == p]  # noqa: PLR0124 — NaN is not equal to itself
    highest = 0.0
    for rank, index in enumerate(sorted(made, key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(made) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def d_z(differences: Sequence[float], dialogs: Sequence[str]) -> float:
    """d_z of paired means by dialog: mean / SD (n - 1) of the dialogs' mean differences (Lakens 2013).

    See doi:10.3389/fpsyg.2013.00863. It is not the d of two independent groups, whose unit is the SD of the values. NaN where the
    differences do not vary.
    """
    grouped = Dialogs(dialogs)
    means = grouped.sums(differences) / grouped.sizes
    deviation = float(means.std(ddof=1)) if grouped.count > 1 else 0.0
    return float(means.mean()) / deviation if deviation > SLACK else float("nan")


def superiority(differences: Sequence[float]) -> float:
    """Probability of superiority: the share of samples where the first system scores higher, ties counted half (Grissom 1994)."""
    values = np.asarray(differences, dtype=float)
    return float(((values > 0) + 0.5 * (values == 0)).mean())


def smallest_p(first: int, second: int | None, resamples: int) -> float:
    """The smallest two-sided p that a permutation test can give: of `first` pairs, or of two groups of these sizes."""
    ways = 2**first if second is None else comb(first + second, first)
    return 2 / ways if ways <= resamples else 2 / (resamples + 1)


@cache
def relabelings(first: int, second: int | None) -> Numbers:
    """The weights that make a mean difference of the values, the true one first: signs of pairs, or labels of two groups."""
    size = first + (second or 0)
    if second is None:
        every: NDArray[np.float64] = np.array(list(islice(product((1.0, -1.0), repeat=first), RELABELINGS)))
        if 2**first > RELABELINGS:
            every = np.random.default_rng(1).choice((1.0, -1.0), size=(RELABELINGS, first))
            every[0] = 1
        return every / first
    chance = np.random.default_rng(1)
    if comb(size, first) <= RELABELINGS:
        chosen = list(combinations(range(size), first))
    else:
        chosen = [tuple(range(first)), *(tuple(chance.permutation(size)[:first]) for _ in range(RELABELINGS - 1))]
    weights = np.full((len(chosen), size), -1 / second)
    for row, indices in zip(weights, chosen, strict=True):
        row[list(indices)] = 1 / first
    return weights


@cache
def power(first: int, second: int | None, effect: float, level: float) -> float:
    """How often a permutation test finds a true effect at a level, in `SIMULATIONS` experiments with normal values.

    `first` pairs whose differences have the mean `effect` in units of their SD (d_z); or two groups of the sizes `first` and
    `second` whose means are `effect` SDs apart (d).
    """
    values = np.random.default_rng(2).normal(size=(SIMULATIONS, first + (second or 0)))
    values[:, :first] += effect
    differences = np.abs(values @ relabelings(first, second).T)
    p_values = (differences >= differences[:, :1] - SLACK).mean(axis=1)
    return float((p_values <= level).mean())


def detectable(first: int, second: int | None, level: float, wanted: float = 0.8) -> float:
    """The smallest effect, in steps of 0.1 to at most 10, that is found with a power of at least `wanted`; NaN if none is."""
    steps = range(1, 101)
    found = (step / 10 for step in steps if power(first, second, step / 10, level) >= wanted)
    return next(found, float("nan"))
