"""Uncertainty of scores: rounds of one dialog are not independent, so whole dialogs are resampled and whole dialogs swapped.

Three questions are answered here: between which values a mean lies (bootstrap over dialogs), whether one of two systems is
better by more than chance (paired approximate randomization, Holm's correction), and by how much (effect sizes).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Numbers = NDArray[np.float64]
SLACK = 1e-9  # a smaller standard deviation is rounding: the numbers are equal


@dataclass(frozen=True)
class Estimate:
    """A mean over samples, or a score of them all, with its bootstrap interval."""

    mean: float
    lo: float
    hi: float

    def rounded(self) -> dict[str, float]:
        """For JSON and CSV, to 4 decimals."""
        return {"mean": round(self.mean, 4), "lo": round(self.lo, 4), "hi": round(self.hi, 4)}


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
    """Percentile intervals from resampling dialogs (clusters) with replacement (Davison & Hinkley 1997, section 3.8).

    `dialogs` names the dialog of each sample. One set of resamples serves every metric, so differences are paired.
    """

    def __init__(self, dialogs: Sequence[str], resamples: int, confidence: float, seed: int) -> None:
        self.dialogs = Dialogs(dialogs)
        self.draws = np.random.default_rng(seed).integers(0, self.dialogs.count, size=(resamples, self.dialogs.count))
        self.samples = self.dialogs.sizes[self.draws].sum(axis=1)
        self.tails = (100 * (1 - confidence) / 2, 100 * (1 + confidence) / 2)

    def estimate(self, values: Sequence[float]) -> Estimate:
        """Mean of `values` [samples], and its interval over resampled dialogs."""
        means = self.dialogs.sums(values)[self.draws].sum(axis=1) / self.samples
        lo, hi = np.percentile(means, self.tails)
        return Estimate(float(np.mean(values)), float(lo), float(hi))

    def estimate_pooled(self, counts: NDArray[np.int64], score: Callable[[list[int]], float]) -> Estimate:
        """The score that `score` makes of the sum of all samples' `counts` (samples x counts), and its interval."""
        sums = np.stack([self.dialogs.sums(column) for column in counts.T], axis=1).astype(np.int64)
        drawn = np.stack([column[self.draws].sum(axis=1) for column in sums.T], axis=1)
        lo, hi = np.percentile([score(row) for row in drawn.tolist()], self.tails)
        return Estimate(score(counts.sum(axis=0).tolist()), float(lo), float(hi))


def p_of_swaps(differences: Sequence[float], dialogs: Sequence[str], resamples: int, seed: int) -> float:
    """Two-sided p that differences (first system minus second, sample by sample) have mean 0: paired approximate randomization.

    If two systems are alike, their scores of a dialog may change places (Noreen 1989), which turns the sign of the dialog's sum.
    The statistic is the absolute sum over samples. Where there are at most `resamples` ways to swap dialogs, all are tried, else
    as many are drawn, and the data as they are count as one of them (Phipson & Smyth 2010).
    """
    sums = Dialogs(dialogs).sums(differences)
    if len(sums) < 2:
        return 1.0
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
    """Holm's correction (1979) of a family of m p-values: the i-th smallest times m - i + 1, never falling, at most 1."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def cohens_d(differences: Sequence[float], dialogs: Sequence[str]) -> float:
    """Cohen's d of paired means by dialog: mean / SD (n - 1) of the dialogs' mean differences; NaN where they do not vary."""
    grouped = Dialogs(dialogs)
    means = grouped.sums(differences) / grouped.sizes
    deviation = float(means.std(ddof=1)) if grouped.count > 1 else 0.0
    return float(means.mean()) / deviation if deviation > SLACK else float("nan")


def superiority(differences: Sequence[float]) -> float:
    """Probability of superiority: the share of samples where the first system scores higher, ties counted half (Grissom 1994)."""
    values = np.asarray(differences, dtype=float)
    return float(((values > 0) + 0.5 * (values == 0)).mean())
