"""AnnoMI's own expert codes: what real MI looks like in the paper's measures, and how far its annotators agree on them."""

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from statistics import fmean

import numpy as np
import pandas as pd

from mi_llm.audit.evidence import Evidence
from mi_llm.miti.reliability import cohen, fleiss
from mi_llm.statistics import FEWEST, NONE, jackknife_interval

CODES: dict[
    str, Callable[[pd.DataFrame], pd.Series]
] = {  # code → the column of annotators' answers; n/a or empty where it does not apply
    "main_behaviour": lambda table: table["main_therapist_behaviour"],
    "reflection_present": lambda table: table["reflection_exists"],
    "question_present": lambda table: table["question_exists"],
    "reflection_type": lambda table: table["reflection_subtype"],
}


def behaviours(evidence: Evidence) -> pd.DataFrame:
    """Behavior counts of each transcript: columns transcript, quality, topic, rounds, questions, reflections, simple, complex,
    r_to_q, complex_share.

    A counselor utterance counts once for each behavior in it. Where several annotators coded a transcript, counts are
    their means. A ratio is empty where its denominator is 0.
    """
    rows = []
    spoken = evidence.annomi[evidence.annomi["interlocutor"] == "therapist"]
    about = evidence.transcripts.set_index("transcript")
    for name, table in spoken.groupby("transcript_id", sort=False):
        raters = table["annotator_id"].nunique()
        simple, complex_ = ((table["reflection_subtype"] == kind).sum() / raters for kind in ("simple", "complex"))
        questions, reflections = ((table[column] == "True").sum() / raters for column in ("question_exists", "reflection_exists"))
        known = about.loc[int(str(name))]
        rows.append(
            {"transcript": int(str(name)), "quality": known["quality"], "topic": known["topic"], "rounds": int(known["rounds"])}
            | {"questions": questions, "reflections": reflections, "simple": simple, "complex": complex_}
            | {"r_to_q": reflections / questions if questions else None}
            | {"complex_share": complex_ / (simple + complex_) if simple + complex_ else None}
        )
    columns = [
        "transcript",
        "quality",
        "topic",
        "rounds",
        "questions",
        "reflections",
        "simple",
        "complex",
        "r_to_q",
        "complex_share",
    ]
    return pd.DataFrame(rows, columns=columns).round(4)


def by_quality(table: pd.DataFrame) -> pd.DataFrame:
    """Behaviors by quality: columns quality, transcripts, and each ratio as mean of ratios and as ratio of means."""
    rows = []
    for quality, part in table.groupby("quality"):
        rows.append(
            {
                "quality": quality,
                "transcripts": len(part),
                "questions": part["questions"].mean(),
                "reflections": part["reflections"].mean(),
            }
            | {
                "r_to_q_mean_of_ratios": part["r_to_q"].mean(),
                "r_to_q_ratio_of_means": part["reflections"].sum() / part["questions"].sum(),
            }
            | {"complex_share_mean_of_ratios": part["complex_share"].mean()}
            | {"complex_share_ratio_of_means": part["complex"].sum() / (part["simple"].sum() + part["complex"].sum())}
        )
    return pd.DataFrame(rows).round(4)


def agreement(evidence: Evidence) -> pd.DataFrame:
    """Agreement of the annotators of the shared transcripts, one row per code.

    Columns: code, n_items, n_pairs, kappa_mean, kappa_min, kappa_max, fleiss, lo, hi. Items are counselor utterances of transcripts
    that more than one annotator coded; Cohen's kappa of each pair of annotators over the items that both coded, Fleiss' kappa over all
    with its 95 % interval (`kappa_interval`). `reflection_type` (simple or complex) looks only at utterances in which both found a
    reflection.
    """
    table = evidence.annomi[evidence.annomi["interlocutor"] == "therapist"]
    shared = table.groupby("transcript_id")["annotator_id"].nunique()
    table = table[table["transcript_id"].isin(shared[shared > 1].index)]
    rows = []
    for code, codes_of in CODES.items():
        wide = table.assign(code=codes_of(table)).pivot_table(
            index=["transcript_id", "utterance_id"], columns="annotator_id", values="code", aggfunc="first"
        )
        wide = wide.where((wide != "n/a") & wide.notna(), None)
        items_by_transcript: dict[str, list[list[str]]] = {}
        for (transcript, _), row in zip(wide.index, wide.to_numpy().tolist(), strict=True):
            codes = [value for value in row if isinstance(value, str)]
            if len(codes) > 1:
                items_by_transcript.setdefault(str(transcript), []).append(codes)
        items = list(chain.from_iterable(items_by_transcript.values()))
        if not items:
            continue
        kappas = []
        for first, second in combinations(wide.columns, 2):
            both = wide[[first, second]].dropna()
            if len(both):
                kappas.append(cohen(both[first].tolist(), both[second].tolist()))
        lo, hi = kappa_interval(list(items_by_transcript.values()))
        rows.append(
            {"code": code, "n_items": len(items), "n_pairs": len(kappas), "kappa_mean": fmean(kappas)}
            | {"kappa_min": min(kappas), "kappa_max": max(kappas), "fleiss": fleiss(items), "lo": lo, "hi": hi}
        )
    columns = ["code", "n_items", "n_pairs", "kappa_mean", "kappa_min", "kappa_max", "fleiss", "lo", "hi"]
    return pd.DataFrame(rows, columns=columns).round(4)


def kappa_interval(transcripts: Sequence[Sequence[Sequence[str]]]) -> tuple[float, float]:
    """The 95 % interval of Fleiss' kappa over transcripts (each its items, each item its codes): the jackknife's."""
    if len(transcripts) < FEWEST:
        return NONE
    left_out = [
        fleiss(list(chain.from_iterable(items for index, items in enumerate(transcripts) if index != without)))
        for without in range(len(transcripts))
    ]
    return jackknife_interval(fleiss(list(chain.from_iterable(transcripts))), [np.array(left_out)], 0.95)
