"""Stage `summary`: what the coders saw, arm by arm (paper, Manual Evaluation, Tables 2, 4, 5 and 6).

Reads `blind/packets`, `blind/key.csv` and `code/{codes,globals,client}.csv`. Writes to `summary/`: `transcripts.csv` (each coded
transcript's globals, counts, summary scores), `table_2.csv` (the formulas), `table_4.csv` (lengths), `table_5.csv` (topics),
`table_6.csv` (mean, SD and interval of every indicator and arm, rates per round, ratios both ways), `tests.csv` (tuned against
base, tuned against real), `reliability.csv`, `client_language.csv` (change talk by arm, with the globals that it answers to) and
`metrics.json`. Arms without a transcript have no row.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mi_llm import storage
from mi_llm.codebook import client, coding
from mi_llm.codebook.coding import Behaviour, Global, Summary
from mi_llm.codebook.packets import transcripts_of
from mi_llm.codebook.tables import Transcripts, read_tables
from mi_llm.codebook.topics import topic, words
from mi_llm.dialog import Dialog, deviation, volley_lengths
from mi_llm.miti import client_language, reliability
from mi_llm.stage import stage
from mi_llm.statistics import DialogBootstrap, holm
from mi_llm.study import ARMS, REAL, Study

OF_GLOBALS = (coding.TECHNICAL, coding.RELATIONAL)
OF_COUNTS = (
    coding.REFLECTIONS,
    coding.COMPLEX_SHARE,
    coding.REFLECTIONS_TO_QUESTIONS,
    coding.ADHERENT,
    coding.NONADHERENT,
    coding.ADHERENT_RATIO,
)
SUMMARIES: tuple[Summary[Any], ...] = (*OF_COUNTS, *OF_GLOBALS)
RATIOS = tuple(score for score in OF_COUNTS if score.bottom != 1)
COUNTED = (*Behaviour, coding.REFLECTIONS.code, coding.ADHERENT.code, coding.NONADHERENT.code)  # grow with the talk's length
INDICATORS = (*Global, *Behaviour, *(score.code for score in SUMMARIES))
ABOUT = ["packet", "source", "arm", "profile"]


def counts_of(codes: pd.DataFrame) -> pd.DataFrame:
    """Behavior counts of each transcript, the mean over its raters: packets x behaviors, 0 for what nobody saw."""
    by_rater = codes.pivot_table(index=["rater", "packet"], columns="code", values="volley", aggfunc="count", fill_value=0)
    return by_rater.reindex(columns=list(Behaviour), fill_value=0).groupby("packet").mean()


def globals_of(ratings: pd.DataFrame) -> pd.DataFrame:
    """Globals of each transcript, the mean over its raters: packets x globals, NaN where none was given."""
    means = ratings.pivot_table(index="packet", columns="code", values="rating", aggfunc="mean")
    return means.reindex(columns=list(Global))


def summed(summary: Summary[Any], codes: Mapping[Any, float]) -> float:
    """A summary score of one transcript; NaN where it does not exist, or a code is missing."""
    value = summary(codes)
    return float("nan") if value is None else float(value)


def read_key(study: Study) -> pd.DataFrame:
    """Which packet is what; all of it is text."""
    return pd.read_csv(study.path("blind", "key.csv"), dtype=str, keep_default_na=False)


def transcripts(study: Study, packets: Transcripts) -> pd.DataFrame:
    """One row per coded transcript: what it is (`ABOUT`), its rounds (counselor volleys), and every indicator."""
    codes, ratings = read_tables(study.path("code"))
    counts, global_means = counts_of(codes), globals_of(ratings)
    table = read_key(study).set_index("packet").join(counts, how="inner").join(global_means, how="left")
    table = table.rename_axis("packet").reset_index()[[*ABOUT, *counts, *global_means]]
    table.insert(len(ABOUT), "rounds", [sum(turn.role == "counselor" for turn in packets[name]) for name in table["packet"]])
    for summary in SUMMARIES:
        table[summary.code] = [summed(summary, row) for row in table.to_dict("records")]
    order = {source: index for index, source in enumerate((*study.models, "annomi"))}
    return table.sort_values(["source", "arm", "packet"], key=lambda column: column.map(lambda name: order.get(name, name)))


def table_2() -> pd.DataFrame:
    """How the summary scores are computed: columns code, name, formula, fair, good (thresholds of the manual)."""
    rows = []
    for summary in SUMMARIES:
        threshold = coding.THRESHOLDS.get(summary.code)
        limits = {"fair": threshold.fair, "good": threshold.good} if threshold else {}
        rows.append({"code": summary.code, "name": summary.name.en, "formula": str(summary), **limits})
    return pd.DataFrame(rows, columns=["code", "name", "formula", "fair", "good"])


def table_4(key: pd.DataFrame, packets: Transcripts) -> pd.DataFrame:
    """Rounds per dialog and characters per volley of each arm, counted as in the paper's Table 4."""
    rows = []
    for (source, arm), arm_rows in key.groupby(["source", "arm"], sort=False):
        talks = [Dialog(id=name, source=str(source), turns=tuple(packets[name])) for name in arm_rows["packet"]]
        row: dict[str, Any] = {"source": source, "arm": arm, "n": len(talks)}
        for what, (mean, sd) in volley_lengths(talks).items():
            row |= {f"{what}_mean": mean, f"{what}_sd": sd}
        rows.append(row)
    columns = ["source", "arm", "n", *(f"{what}_{name}" for what in ("rounds", "counselor", "client") for name in ("mean", "sd"))]
    return pd.DataFrame(rows, columns=columns).round(4)


def table_5(key: pd.DataFrame, packets: Transcripts) -> pd.DataFrame:
    """Transcripts by topic (source, arm, topic, n): the profile's own topic, else one recognized by `topics.yaml`."""

    def named(row: Any) -> str:
        if row.arm == REAL:
            return topic(row.topic, words("annomi"))
        client_text = " / ".join(turn.text for turn in packets[row.packet] if turn.role == "client")
        return str(row.topic) or topic(client_text, words("simulated"))

    with_topics = key.assign(topic=[named(row) for row in key.itertuples()])
    counted = with_topics.groupby(["source", "arm", "topic"], sort=False).size().rename("n").reset_index()
    return counted.sort_values(["source", "arm", "n", "topic"], ascending=[True, True, False, True], kind="stable")


def table_6(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Every indicator of every arm, over its transcripts: n, mean, sample SD, bootstrap interval of the mean.

    `per_round` is the sum of counts over the sum of rounds. For ratios `mean` is the mean of ratios, as in the paper, over the
    transcripts that have one, and `ratio_of_means` the ratio of the summed counts.
    """
    rows = []
    for (source, arm), arm_rows in table.groupby(["source", "arm"], sort=False):
        sums = arm_rows[list(Behaviour)].sum()
        pooled = {ratio.code: summed(ratio, sums) for ratio in RATIOS}
        for code in INDICATORS:
            values = arm_rows[code].dropna().to_numpy(dtype=float)
            if not len(values):
                continue
            names = [str(index) for index in range(len(values))]
            bootstrap = DialogBootstrap(
                names, study.score.resamples, study.score.confidence, study.seed_of("summary", source, arm, code)
            )
            estimate = bootstrap.estimate(values)
            per_round = arm_rows[code].sum() / arm_rows["rounds"].sum() if code in COUNTED else float("nan")
            sd = deviation(values.tolist())
            rows.append(
                {"indicator": code, "source": source, "arm": arm, "n": len(values), "mean": estimate.mean, "sd": sd}
                | {"lo": estimate.lo, "hi": estimate.hi, "per_round": per_round, "ratio_of_means": pooled.get(code, float("nan"))}
            )
    columns = ["indicator", "source", "arm", "n", "mean", "sd", "lo", "hi", "per_round", "ratio_of_means"]
    return pd.DataFrame(rows, columns=columns).round(4)


def tests(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Permutation tests of the difference of means: columns source, contrast, indicator, n, difference, p, p_holm.

    Tuned against base: the same client met both, so signs of the pairs' differences are exchanged; talks without a client's
    profile, which people may have, are in no pair. Tuned against real: labels are exchanged. All exchanges are tried where there
    are at most `score.resamples`, else so many are drawn. Counts enter as rates per round, since talks differ in length. Holm's
    correction takes the indicators of one contrast of one model as a family.
    """
    rates = table.copy()
    rates[list(COUNTED)] = rates[list(COUNTED)].div(rates["rounds"], axis=0)
    all_rows = []
    for source in study.models:
        of_model = rates[rates["source"] == source]
        base, tuned = (of_model[of_model["arm"] == arm] for arm in ARMS)
        with_tuned, with_base = by_client(tuned), by_client(base)
        both = with_tuned.index.intersection(with_base.index)
        real = rates[rates["arm"] == REAL]
        for contrast, first, second, paired in (
            ("tuned against base", with_tuned.loc[both], with_base.loc[both], True),
            ("tuned against real", tuned, real, False),
        ):
            rows = [
                {"source": source, "contrast": contrast, "indicator": code}
                | tested(first[code], second[code], study, paired=paired)
                for code in INDICATORS
            ]
            rows = [row for row in rows if row["n"]]
            for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
                all_rows.append(row | {"p_holm": corrected})
    columns = ["source", "contrast", "indicator", "n", "difference", "p", "p_holm"]
    return pd.DataFrame(all_rows, columns=columns).round({"difference": 4, "p": 6, "p_holm": 6})


def by_client(talks: pd.DataFrame) -> pd.DataFrame:
    """Every indicator of each client's profile, the mean over its talks; talks without a profile have no part in it."""
    return talks[talks["profile"] != ""].groupby("profile", sort=False)[list(INDICATORS)].mean()


def mean_of(values: Any, axis: int) -> Any:
    """The statistic of paired differences."""
    return values.mean(axis=axis)


def difference_of(first: Any, second: Any, axis: int) -> Any:
    """The statistic of two independent samples."""
    return first.mean(axis=axis) - second.mean(axis=axis)


def tested(tuned: "pd.Series[float]", control: "pd.Series[float]", study: Study, *, paired: bool) -> dict[str, Any]:
    """One comparison: n (pairs, or transcripts of both), difference of means, p; n is 0 where there are too few to test."""
    first, second = tuned.to_numpy(dtype=float), control.to_numpy(dtype=float)
    if paired:
        known = ~(np.isnan(first) | np.isnan(second))
        samples: tuple[Any, ...] = (first[known] - second[known],)
        count = int(known.sum())
    else:
        samples = (first[~np.isnan(first)], second[~np.isnan(second)])
        count = sum(map(len, samples))
    if min(map(len, samples)) < 2:
        return {"n": 0, "difference": float("nan"), "p": 1.0}
    result = stats.permutation_test(
        samples,
        mean_of if paired else difference_of,
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=study.score.resamples,
        rng=np.random.default_rng(study.seed_of("summary", "tests")),
    )
    return {"n": count, "difference": float(result.statistic), "p": float(result.pvalue)}


def of_clients(study: Study, key: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """Client language of each arm, and beside it how counselors cultivate change talk and soften sustain talk, by rater."""
    codings = client.read_table(study.path("code", "client.csv"))
    rows = []
    for (source, arm), arm_rows in key.groupby(["source", "arm"], sort=False):
        packets = set(arm_rows["packet"])
        rows += client_language.rows(study, source, arm, [coding for coding in codings if coding.packet in packets])
        own = ratings[ratings["packet"].isin(packets)]
        for code in (Global.CULTIVATING, Global.SOFTENING):
            for rater, rated in own[own["code"] == code].groupby("rater"):
                rows += client_language.row(study, (source, arm, str(rater), str(code)), rated["rating"].astype(float).tolist())
    return pd.DataFrame(rows, columns=client_language.COLUMNS).round(4)


def summary(study: Study) -> None:
    """Make the tables of the manual evaluation; see the module."""
    inputs = [study.path("blind", "packets"), study.path("blind", "key.csv"), study.path("code")]
    with stage(study, "summary", None, inputs) as out:
        packets = transcripts_of(study.path("blind", "packets"))
        key = read_key(study)
        order = {source: index for index, source in enumerate((*study.models, "annomi"))}
        key = key.sort_values(["source", "arm", "packet"], key=lambda column: column.map(lambda name: order.get(name, name)))
        table = transcripts(study, packets)
        codes, ratings = read_tables(study.path("code"))
        tables = {
            "transcripts": table.round(4),
            "table_2": table_2(),
            "table_4": table_4(key, packets),
            "table_5": table_5(key, packets),
            "table_6": table_6(table, study),
            "tests": tests(table, study),
            "client_language": of_clients(study, key, ratings),
            "reliability": reliability.table(
                codes,
                ratings,
                resamples=study.score.resamples,
                confidence=study.score.confidence,
                seed=study.seed_of("summary", "reliability"),
            ),
        }
        for name, frame in tables.items():
            storage.write_table(out / f"{name}.csv", frame)
        storage.write_json(out / "metrics.json", numbers_of(tables["table_6"], len(packets), len(table)))


def numbers_of(table: pd.DataFrame, packets: int, coded: int) -> dict[str, Any]:
    """How many transcripts were coded, and each arm's mean of each indicator."""
    numbers: dict[str, Any] = {"packets": packets, "coded": coded}
    for row in table.itertuples():
        numbers.setdefault(row.source, {}).setdefault(row.arm, {})[row.indicator] = row.mean
    return numbers
