"""Tables of client language, for stages `summary` and `miti`: share of change talk and its slope, by arm and rater."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mi_llm.codebook.client import ClientCoding, Talks, share_of_change, slope
from mi_llm.statistics import DialogBootstrap, listed
from mi_llm.study import Study

COLUMNS = ["source", "arm", "rater", "measure", "n", "mean", "lo", "hi", "values"]
SHARE, SLOPE = "share of change talk", "slope"
MEASURES: dict[str, Callable[[Talks], float]] = {SHARE: share_of_change, SLOPE: slope}
RANGES = {SHARE: (0.0, 1.0), SLOPE: (-3.0, 3.0)}  # no slope is steeper than that of a step from -1 to 1 in the middle
RATINGS = (1.0, 5.0)  # the range of a global


def rows(study: Study, source: str, arm: str, codings: Sequence[ClientCoding]) -> list[dict[str, Any]]:
    """Each rater's mean of each measure over the transcripts of an arm that have it, with its interval: columns `COLUMNS`."""
    arm_rows = []
    for rater in dict.fromkeys(coding.rater for coding in codings):
        for measure, score in MEASURES.items():
            values = [score(coding.talks) for coding in codings if coding.rater == rater]
            arm_rows += row(study, (source, arm, rater, measure), values)
    return arm_rows


def row(study: Study, head: tuple[str, str, str, str], values: Sequence[float]) -> list[dict[str, Any]]:
    """The mean of the values that exist, with its bootstrap-t interval over transcripts, within the measure's range.

    One row, or none without a value; `head` are its first four columns. Where there is no interval, `values` lists all.
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return []
    names = [str(index) for index in range(len(known))]
    seed = study.seed_of("client language", *head)
    estimate = DialogBootstrap(names, study.score.resamples, study.score.confidence, seed).estimate(known)
    lo, hi = np.clip([estimate.lo, estimate.hi], *RANGES.get(head[-1], RATINGS)).tolist()
    shown = listed(known) if math.isnan(lo) else ""
    return [dict(zip(COLUMNS, (*head, len(known), estimate.mean, lo, hi, shown), strict=True))]
