"""For a reproduction: the paper's printed numbers beside the study's own, with an interval and a verdict, one row per number.

Reads the audit's claims and what `read`, `split`, `score` and `summary` wrote. A verdict is given only where a number was made
from what the paper made it from: its dialogs, its models, people as clients and as coders. Everything else is of another scale
and is not judged. Table 3 has one rule and one verdict, the audit's: a number under the wrong head is inconsistent here as there.
The real sessions are never judged: which 30 of AnnoMI's the paper drew, and their translations, are not public.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isnan, sqrt
from typing import Any

import pandas as pd
from scipy import stats

from mi_llm import storage
from mi_llm.paper import models as paper_models
from mi_llm.paper.claims import TABLE_3, Claim, claims
from mi_llm.report import manual, tables
from mi_llm.statistics import FEWEST, welch_interval
from mi_llm.study import REAL, Study

AGREES, DIFFERS, INCONSISTENT, OTHER = "agrees", "differs", "inconsistent", "other scale"


@dataclass(frozen=True)
class Own:
    """A number of this study that stands beside a claim: with its interval, if it has one, and whether it may be judged.

    A mean over `n` talks has its sample SD `sd`; what is a mere count has neither. `audited` is the audit's verdict where the
    number is the audit's own recount (Table 3).
    """

    claim: str
    value: float
    lo: float = float("nan")
    hi: float = float("nan")
    same: bool = False
    sd: float = float("nan")
    n: int = 0
    audited: str = ""


def verdict(claim: Claim, own: Own, confidence: float) -> str:
    """Whether a number agrees with the printed one, within the rounding of that.

    The audit's verdict stands where it has one: `inconsistent` is a number that reproduces under another head. Means of both
    sides with SD and n: if Welch's interval of the difference holds 0. A score whose printed counterpart has no SD: if its own
    interval holds the printed number. Without either, by the printed digits; a mean of few talks is not judged.
    """
    printed = claim.mean
    if not own.same or 0 < own.n < FEWEST:
        return OTHER
    if own.audited:
        return {"reproduced": AGREES, "inconsistent": INCONSISTENT}.get(own.audited, DIFFERS)
    lo, hi = own.lo - printed.value, own.hi - printed.value
    if claim.sd and own.n:
        published_sample = (printed.value, claim.sd.value, int(claim.n))
        lo, hi = welch_interval((own.value, own.sd, own.n), published_sample, confidence)
    if isnan(lo):
        return AGREES if printed.shows(own.value) else DIFFERS
    return AGREES if lo - printed.half <= 0 <= hi + printed.half else DIFFERS


def row(claim: Claim, own: Own, confidence: float) -> dict[str, str]:
    """One row of the table of published numbers."""
    printed = claim.mean
    digits = max(printed.digits, 0 if own.value == int(own.value) else 2)
    around = "—" if isnan(own.lo) else f"[{own.lo:.2f}, {own.hi:.2f}]".replace("-", "−")
    ours = f"{own.value:.{digits}f}"
    return {
        "Place in the paper": claim.location, "Published": claim.reported, "This study": ours, "Interval": around,
        "Verdict": verdict(claim, own, confidence), "claim": claim.id,
    }  # fmt: skip


def released(study: Study) -> bool:
    """Whether the test dialogs are the authors' own."""
    return study.split.test in ("release", "aligned")


def tuned_alike(study: Study) -> bool:
    """Whether the tuned models are the paper's: models of the hub alone, trained on the authors' own dialogs."""
    return len(study.from_hub) == len(study.models) and study.training == "release"


def own_dialogs(study: Study) -> Iterable[Own]:
    """Table 3, and the sizes of the training and test sets: counts, so without an interval."""
    parts = storage.read_json(study.path("split", "metrics.json"))
    train = study.training == "release"
    recounts = tables.recounts(study)
    dialogs: list[tuple[str, Any, bool]] = [("train", parts["train"], train), ("test", parts["test"], released(study))]
    dialogs[:0] = [(corpus, storage.read_json(study.path("read", corpus, "metrics.json")), corpus in study.acquire.upstream)
                   for corpus in ("cpsycound", "psydtcorpus") if corpus in study.corpora]  # fmt: skip
    for dialog_set, numbers, same in dialogs:
        for name in tables.FEATURES:
            claim = f"T3-{TABLE_3[dialog_set]}-{name}"
            if same and claim in recounts:
                mean, _, judged = recounts[claim]
                yield Own(claim, mean, same=True, audited=judged)
            else:
                yield Own(claim, numbers[f"{name}_mean"])
    yield Own("X-2000", parts["train"]["dialogs"], same=train)
    yield Own("X-40", parts["test"]["dialogs"], same=released(study))
    yield Own("X-367", parts["test"]["round_samples"], same=study.split.test == "release")


def own_scores(study: Study) -> Iterable[Own]:
    """Figure 3: BLEU-4 of each model, the one measure whose values the paper prints; on the rounds as published."""
    table = pd.read_csv(study.path("score", "scores.csv"))
    table = table[(table["set"] == table["set"].iloc[0]) & (table["metric"] == "bleu_4")].set_index(["model", "arm"])
    for model in study.models:
        base = model in study.from_hub
        alike = {"base": base, "tuned": base and study.training == "release"}
        for arm, claim in bleu_claims(study, model).items():
            if arm in study.arms(model):
                scores, same = table.loc[(model, arm)], alike[arm] and study.split.test == "release"
                yield Own(claim, scores["mean"], scores["lo"], scores["hi"], same)


def bleu_claims(study: Study, model: str) -> dict[str, str]:
    """The ids of the paper's claims about the BLEU-4 of a study's model, by arm; none for a model the paper does not have."""
    known = paper_models.of_format(study.models[model].chat_format)
    return {arm: f"X-bleu-{word}-{known.figure_3}" for arm, word in (("base", "base"), ("tuned", "ft"))} if known else {}


def met(study: Study, arm: str) -> bool:
    """Whether an arm's talks are like the paper's: people talking with its tuned models."""
    return arm != REAL and tuned_alike(study) and study.simulate.client == "person"


def own_lengths(study: Study) -> Iterable[Own]:
    """Table 4: means over talks, with their SDs and Student's interval of the mean."""
    for line in manual.read(study, "table_4").itertuples():
        if column := manual.printed(study, line.source, line.arm):
            yield Own(f"T4-{column[0]}-n", line.n, same=met(study, line.arm))
            for name in tables.FEATURES:
                mean, sd = getattr(line, f"{name}_mean"), getattr(line, f"{name}_sd")
                own = Own(f"T4-{column[0]}-{name}", mean, same=met(study, line.arm), sd=sd, n=line.n)
                if line.n >= FEWEST and sd > 0:
                    lo, hi = stats.t.interval(study.score.confidence, line.n - 1, mean, sd / sqrt(line.n))
                    own = replace(own, lo=lo, hi=hi)
                yield own


def own_topics(study: Study) -> Iterable[Own]:
    """Table 5, real sessions: the number of each topic."""
    table = manual.read(study, "table_5")
    real = table[table["arm"] == REAL].groupby("topic")["n"].sum()
    for claim in claims().values():
        if claim.method == "real_topic" and len(real):
            yield Own(claim.id, int(real.get(claim.claim, 0)))


def own_indicators(study: Study) -> Iterable[Own]:
    """Table 6: means over transcripts with intervals and SDs; judged only if people coded."""
    for line in manual.read(study, "table_6").itertuples():
        column = manual.printed(study, line.source, line.arm)
        if column and not isnan(line.mean):
            same = met(study, line.arm) and study.code.coder == "human"
            yield Own(f"T6-{line.indicator}-{column[1]}", line.mean, line.lo, line.hi, same, line.sd, line.n)


def published(study: Study) -> pd.DataFrame:
    """Every printed number with a counterpart in this study, in the paper's order; the column `claim` is the claim's id."""
    paper = claims()
    own = {
        number.claim: number
        for part in (own_dialogs, own_scores, own_lengths, own_topics, own_indicators)
        for number in part(study)
    }
    rows = [row(claim, own[name], study.score.confidence) for name, claim in paper.items() if name in own and claim.reported]
    return pd.DataFrame(rows).set_index("Place in the paper")


def at_scale(table: pd.DataFrame) -> bool:
    """Whether every number is judged but those of the real sessions, which no run can have: a run at the paper's scale."""
    real = table["claim"].str.contains(r"^T[45]-real-|^T6-.*-Real$")
    return OTHER not in set(table.loc[~real, "Verdict"])


def tally(table: pd.DataFrame, prefixes: Sequence[str]) -> str:
    """The verdicts on claims by the prefixes of their ids: `agrees 2 of 3`, `other scale`; a dash where nothing is printed."""
    verdicts = table.loc[table["claim"].str.startswith(tuple(prefixes)), "Verdict"] if prefixes else pd.Series(dtype=str)
    judged = verdicts[verdicts != OTHER]
    if not len(verdicts):
        return "—"
    if not len(judged):
        return OTHER
    wrong = (judged == INCONSISTENT).sum()
    return f"agrees {(judged == AGREES).sum()} of {len(judged)}" + (f", inconsistent {wrong}" if wrong else "")


def with_verdicts(table: pd.DataFrame, numbers: pd.DataFrame, prefixes: Iterable[Sequence[str]]) -> pd.DataFrame:
    """A table with a column for the verdicts on each of its rows' claims."""
    return table.assign(Verdict=[tally(numbers, row_prefixes) for row_prefixes in prefixes])


def dialog_features(study: Study, numbers: pd.DataFrame) -> pd.DataFrame:
    """Table 3 with verdicts; a judged row has the audit's recount, so that number and verdict follow one rule."""
    rows = [TABLE_3.get(name) for name in (*study.corpora, "train", "test")]
    table = with_verdicts(tables.dialog_features(study), numbers, [[f"T3-{name}-"] if name else [] for name in rows])
    recounts = tables.recounts(study)
    judged = set(numbers.loc[numbers["Verdict"] != OTHER, "claim"])
    for row_number, name in enumerate(rows):
        for feature, heading in tables.FEATURES.items():
            if (claim := f"T3-{name}-{feature}") in recounts and claim in judged:
                mean, sd, _ = recounts[claim]
                table.iloc[row_number, table.columns.get_loc(heading)] = f"{mean:.2f} ({sd:.2f})"
    return table


def figure_3(study: Study, numbers: pd.DataFrame) -> pd.DataFrame:
    """The numbers of Figure 3 with what is printed of them, and verdicts."""
    table = tables.figure_3(study)
    names = [
        list(bleu_claims(study, model).values()) if metric == "BLEU-4" else []
        for model, metric in zip(table.index, table["Metric"], strict=True)
    ]
    for index, heading in ((0, "Base"), (1, "Tuned")):
        printed = [tables.claimed(pair[index]) if pair else "—" for pair in names]
        table.insert(table.columns.get_loc(heading) + 1, f"{heading}, paper", printed)
    return with_verdicts(table, numbers, first_set(study, table, names))


def first_set(study: Study, table: pd.DataFrame, names: list[list[str]]) -> list[list[str]]:
    """The claims of each row of Figure 3, for the first test set only: the paper has one."""
    if "Test set" not in table:
        return names
    first = table["Test set"].iloc[0]
    return [pair if name == first else [] for pair, name in zip(names, table["Test set"], strict=True)]


def lengths(study: Study, numbers: pd.DataFrame) -> pd.DataFrame:
    """Table 4 with verdicts."""
    columns = [manual.printed(study, row.source, row.arm) for row in manual.read(study, "table_4").itertuples()]
    return with_verdicts(manual.lengths(study), numbers, [[f"T4-{column[0]}-"] if column else [] for column in columns])


def beside(study: Study) -> dict[str, pd.DataFrame]:
    """What the site of a reproduction shows of the paper: its Table 1, every printed number, and our tables with verdicts."""
    numbers = published(study)
    return {
        "benchmarks": tables.benchmarks(study),
        "dialog-features": dialog_features(study, numbers),
        "scores": figure_3(study, numbers),
        "lengths": lengths(study, numbers),
        "topics": topics(study, numbers),
        "indicators": indicators(study, numbers),
        "published": numbers,
    }


def topics(study: Study, numbers: pd.DataFrame) -> pd.DataFrame:
    """Table 5 with verdicts on the real sessions' topics."""
    table = manual.topics(study)
    return with_verdicts(table, numbers, [[f"T5-real-{str(name).replace(' ', '_')}"] for name in table.index])


def indicators(study: Study, numbers: pd.DataFrame) -> pd.DataFrame:
    """Table 6 with verdicts."""
    return with_verdicts(manual.indicators(study), numbers, [[f"T6-{code}-"] for code in manual.NAMES])
