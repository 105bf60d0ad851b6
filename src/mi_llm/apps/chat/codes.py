"""What the words of a reply show: the lexical coder's MI codes, their counts over a talk, and the summary scores of these.

Beside each code and score stands how far the coder may be trusted (`miti/validity.yaml`, measured on English sessions). Globals,
and so the technical and the relational score, need a person.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from mi_llm import storage
from mi_llm.codebook import lexical
from mi_llm.codebook.coding import (
    ADHERENT,
    BEHAVIORS,
    COMPLEX_SHARE,
    NONADHERENT,
    REFLECTIONS_TO_QUESTIONS,
    THRESHOLDS,
    Behavior,
    Summary,
    rating,
    volley,
)

SCORES: tuple[Summary[Behavior], ...] = (REFLECTIONS_TO_QUESTIONS, COMPLEX_SHARE, ADHERENT, NONADHERENT)


@dataclass(frozen=True)
class Validity:
    """How a code or a score fared against experts: `kind` is kappa or auc, with its value and 95 % interval."""

    kind: str
    value: float
    lo: float
    hi: float


@cache
def validity() -> dict[str, Validity]:
    """What was measured of the lexical coder, by code."""
    measured = storage.read_yaml(resources.files("mi_llm.miti") / "validity.yaml")["lexical"]
    return {code: Validity(kind, *entry[kind]) for code, entry in measured.items() for kind in ("kappa", "auc") if kind in entry}


def graded_by_chance() -> bool:
    """Whether no score that the manual has thresholds for tells good sessions from others: each interval of AUC holds 0.5."""
    return all(validity()[code].lo <= 0.5 <= validity()[code].hi for code in THRESHOLDS if code in validity())


def codes(client: str, counselor: str) -> tuple[Behavior, ...]:
    """The behaviors that a reply counts for, in the codebook's order."""
    seen = volley(coded.behavior for coded in lexical.code(client, counselor))
    return tuple(entry.code for entry in BEHAVIORS if entry.code in seen)


def tally(replies: Iterable[Sequence[Behavior]]) -> dict[str, Any]:
    """The counts of one side's replies, and each summary score with its rating, where it exists and the manual has thresholds."""
    counts = Counter(code for reply in replies for code in reply)
    scores = {score.code: score({code: float(counts[code]) for code in Behavior}) for score in SCORES}
    return {
        "counts": {str(code): counts[code] for code in Behavior},
        "scores": {
            code: {"value": value, "rating": rating(value, THRESHOLDS[code]) if code in THRESHOLDS else None}
            for code, value in scores.items()
        },
    }
