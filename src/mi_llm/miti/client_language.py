"""Tables of client language, for stages `summary` and `miti`: share of change talk and its slope, by arm and rater."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from mi_llm.codebook.client import ClientCoding, Talks, share_of_change, slope
from mi_llm.statistics import DialogBootstrap
from mi_llm.study import Study

COLUMNS = ["source", "arm", "rater", "measure", "n", "mean", "lo", "hi"]
MEASURES: dict[str, Callable[[Talks], float]] = {"share of change talk": share_of_change, "slope": slope}


def rows(study: Study, source: str, arm: str, codings: Sequence[ClientCoding]) -> list[dict[str, Any]]:
    """Each rater's mean of each measure over the transcripts of an arm that have it, with its interval: columns `COLUMNS`."""
    arm_rows = []
    for rater in dict.fromkeys(coding.rater for coding in codings):
        for measure, score in MEASURES.items():
            values = [score(coding.talks) for coding in codings if coding.rater == rater]
            arm_rows += row(study, (source, arm, rater, measure), values)
    return arm_rows


def row(study: Study, head: tuple[str, str, str, str], values: Sequence[float]) -> list[dict[str, Any]]:
    """The mean of the values that exist, with its interval over transcripts: one row, or none without a value.

    `head` are the row's first four columns.
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return []
    names = [str(index) for index in range(len(known))]
    seed = study.seed_of("client language", *head)
    estimate = DialogBootstrap(names, study.score.resamples, study.score.confidence, seed).estimate(known)
    return [dict(zip(COLUMNS, (*head, len(known), estimate.mean, estimate.lo, estimate.hi), strict=True))]
