"""How far a coder agrees with experts. AnnoMI's annotators (Wu et al. 2022, doi:10.1109/ICASSP43922.2022.9746035) coded every
counselor utterance of 133 English transcripts. It takes the rows of `AnnoMI-full.csv` as the reader yields them, and any coder;
it gives Cohen's kappa with intervals over transcripts, and writes nothing.

AnnoMI's codes are coarser than MITI's. Its *therapist input* (information, advice, options, goals) is here giving information,
persuading with or without permission, and confronting; its *question* is asking questions and seeking collaboration, which is
asked. Affirming and emphasizing autonomy are *other* there.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mi_llm.miti.coding import Behaviour, Coded, volley

Coder = Callable[[str, str], Sequence[Coded]]
INPUT = frozenset({Behaviour.INFORMATION, Behaviour.PERSUADE_WITH, Behaviour.PERSUADE, Behaviour.CONFRONT})
QUESTION = frozenset({Behaviour.QUESTION, Behaviour.SEEK})
REFLECTION = frozenset({Behaviour.SIMPLE, Behaviour.COMPLEX})
LABELS = ("main_therapist_behaviour", "question_exists", "reflection_exists", "reflection_subtype", "therapist_input_exists")


@dataclass(frozen=True)
class Item:
    """A counselor utterance, what the client said before it, and the experts' label in each column of `LABELS`."""

    client: str
    counselor: str
    labels: dict[str, str]


@dataclass(frozen=True)
class Transcript:
    """The counselor utterances of one session."""

    name: str
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class Agreement:
    """Cohen's kappa of a coder with the experts over `n` utterances, and its interval over resampled transcripts."""

    code: str
    kappa: float
    lo: float
    hi: float
    n: int


def transcripts(rows: Iterable[tuple[str, dict[str, str]]]) -> list[Transcript]:
    """Gather `(where, row)` of AnnoMI into transcripts; where several experts coded one, each label is that of most of them.

    Of labels given equally often the one of the expert told first is taken.
    """
    told: dict[str, dict[int, list[dict[str, str]]]] = {}
    for _, row in rows:
        told.setdefault(row["transcript_id"], {}).setdefault(int(row["utterance_id"]), []).append(row)
    found = []
    for name, utterances in told.items():
        client = ""
        transcript = Transcript(name)
        for _, experts in sorted(utterances.items()):
            text = experts[0]["utterance_text"]
            if experts[0]["interlocutor"] == "client":
                client = text
            else:
                labels = {label: Counter(expert[label] for expert in experts).most_common(1)[0][0] for label in LABELS}
                transcript.items.append(Item(client, text, labels))
        found.append(transcript)
    return found


def halves(sessions: Sequence[Transcript], seed: int = 1) -> tuple[list[Transcript], list[Transcript]]:
    """Two halves of the transcripts, drawn by name: lexical cues were written with the first in view, figures are the other's."""
    names = sorted((session.name for session in sessions), key=int)
    drawn = np.random.default_rng(seed).permutation(len(names))
    first = {names[place] for place in drawn[: len(names) // 2]}
    return [one for one in sessions if one.name in first], [one for one in sessions if one.name not in first]


def main_behaviour(found: frozenset[Behaviour]) -> str:
    """The one behaviour that AnnoMI would call a volley's main one: input before question before reflection."""
    for name, behaviours in (("therapist_input", INPUT), ("question", QUESTION), ("reflection", REFLECTION)):
        if found & behaviours:
            return name
    return "other"


def pairs(coder: Coder, item: Item) -> dict[str, tuple[str, str]]:
    """By code: (the coder's, the experts') label. `complex reflection` only where both found a reflection."""
    found = volley(utterance.behaviour for utterance in coder(item.client, item.counselor))
    given = item.labels
    paired = {
        "main behaviour": (main_behaviour(found), given["main_therapist_behaviour"]),
        "question": (str(bool(found & QUESTION)), given["question_exists"]),
        "reflection": (str(bool(found & REFLECTION)), given["reflection_exists"]),
        "input": (str(bool(found & INPUT)), given["therapist_input_exists"]),
    }
    if found & REFLECTION and given["reflection_subtype"] != "n/a":
        paired["complex reflection"] = ("complex" if Behaviour.COMPLEX in found else "simple", given["reflection_subtype"])
    return paired


def agreement(coder: Coder, sessions: Sequence[Transcript], seed: int = 1, resamples: int = 2000) -> list[Agreement]:
    """Kappa of each code with its 95 % percentile interval; transcripts are resampled whole: their utterances belong together.

    A code of which there is nothing to compare has no row.
    """
    told = [[pairs(coder, item) for item in session.items] for session in sessions]
    drawn = np.random.default_rng(seed).integers(0, len(sessions), size=(resamples, len(sessions)))
    rows = []
    for code in ("main behaviour", "question", "reflection", "complex reflection", "input"):
        labels = sorted({label for session in told for item in session if code in item for label in item[code]})
        tables = np.zeros((len(sessions), len(labels), len(labels)))
        for place, session in enumerate(told):
            for item in session:
                if code in item:
                    tables[place, labels.index(item[code][0]), labels.index(item[code][1])] += 1
        pooled = tables.sum(axis=0)
        if not pooled.any():
            continue
        kappas = kappa(tables[drawn].sum(axis=1))
        known = kappas[~np.isnan(kappas)]
        lo, hi = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
        rows.append(Agreement(code, float(kappa(pooled[None])[0]), float(lo), float(hi), int(pooled.sum())))
    return rows


def kappa(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's kappa of each of many tables (tables x labels x labels) of counts; nan where chance alone would agree always."""
    size = tables.sum(axis=(1, 2), keepdims=True)
    share = tables / np.where(size, size, np.nan)
    observed = np.trace(share, axis1=1, axis2=2)
    expected = (share.sum(axis=2) * share.sum(axis=1)).sum(axis=1)
    found: NDArray[np.float64] = (observed - expected) / np.where(expected < 1, 1 - expected, np.nan)
    return found
