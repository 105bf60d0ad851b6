"""How sure the scores are: rounds of one dialog are not independent, so whole dialogs are resampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over samples with its bootstrap interval."""

    mean: float
    lo: float
    hi: float

    def rounded(self) -> dict[str, float]:
        """For JSON and CSV, to 4 decimals."""
        return {"mean": round(self.mean, 4), "lo": round(self.lo, 4), "hi": round(self.hi, 4)}


class DialogBootstrap:
    """Percentile intervals from resampling dialogs (clusters) with replacement (Davison & Hinkley 1997, section 3.8).

    `dialogs` names the dialog of each sample. One set of resamples serves every metric, so differences are paired.
    """

    def __init__(self, dialogs: Sequence[str], resamples: int, confidence: float, seed: int) -> None:
        _, self.cluster = np.unique(np.asarray(dialogs), return_inverse=True)
        self.sizes = np.bincount(self.cluster)
        count = len(self.sizes)
        self.draws = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
        self.tails = (100 * (1 - confidence) / 2, 100 * (1 + confidence) / 2)

    def estimate(self, values: Sequence[float]) -> Estimate:
        """Mean over samples, and its interval over resampled dialogs."""
        sums = np.bincount(self.cluster, weights=np.asarray(values, dtype=float))
        means = sums[self.draws].sum(axis=1) / self.sizes[self.draws].sum(axis=1)
        lo, hi = np.percentile(means, self.tails)
        return Estimate(float(np.mean(values)), float(lo), float(hi))
