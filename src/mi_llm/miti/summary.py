"""Stage `summary`: what the coders saw, arm by arm (paper, Manual Evaluation, Tables 2, 4, 5 and 6).

Reads `blind/packets`, `blind/key.csv` and `code/{codes,globals,client,guesses}.csv`. Writes to `summary/`: `transcripts.csv`
(each coded transcript's globals, counts, summary scores), `table_2.csv` (the formulas), `table_4.csv` (lengths), `table_5.csv`
(topics), `table_6.csv` (mean, SD and interval of every indicator and arm, rates per round, ratios both ways), `tests.csv` (tuned
against base, tuned against real), `power.csv` (what these tests could find), `reliability.csv`, `guesses.csv` (how often raters
guessed the arm), `client_language.csv` (change talk by arm, with the globals that it answers to) and `metrics.json`; where
`code/consensus/` exists, `table_6_consensus.csv` too. Arms without a transcript have no row.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mi_llm import storage
from mi_llm.codebook import client, coding
from mi_llm.codebook.coding import Behavior, Global, Summary
from mi_llm.codebook.packets import transcripts_of
from mi_llm.codebook.tables import UNSURE, Transcripts, automatic, read_guesses, read_tables
from mi_llm.codebook.topics import labels, topic, words
from mi_llm.corpora import annomi
from mi_llm.dialog import Dialog, deviation, volley_lengths
from mi_llm.miti import client_language, reliability
from mi_llm.stage import stage
from mi_llm.statistics import FEWEST, DialogBootstrap, detectable, holm, limit_of_none, listed, share_interval, smallest_p
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
COUNTED = (*Behavior, coding.REFLECTIONS.code, coding.ADHERENT.code, coding.NONADHERENT.code)  # grow with the talk's length
INDICATORS = (*Global, *Behavior, *(score.code for score in SUMMARIES))
SCALES = dict.fromkeys((*Global, *(score.code for score in OF_GLOBALS)), (1.0, 5.0)) | {
    coding.COMPLEX_SHARE.code: (0.0, 1.0),
    coding.ADHERENT_RATIO.code: (0.0, 1.0),
}  # the range of an indicator; that of the others begins with 0
FEW = f"no test: fewer than {FEWEST} sessions"
LEVEL = 0.05
TESTS = ["source", "contrast", "indicator", "n", "control", "difference", "p", "p_holm", "note"]
POWER = ["source", "contrast", "n", "control", "tests", "smallest_p", "smallest_p_holm", "detectable"]
GUESSING = ["rater", "arm", "n", "right", "unsure", "share", "lo", "hi", "by_chance"]
ABOUT = ["packet", "source", "arm", "profile"]


def counts_of(codes: pd.DataFrame) -> pd.DataFrame:
    """Behavior counts of each transcript, the mean over its raters: packets x behaviors, 0 for what nobody saw."""
    by_rater = codes.pivot_table(index=["rater", "packet"], columns="code", values="volley", aggfunc="count", fill_value=0)
    return by_rater.reindex(columns=list(Behavior), fill_value=0).groupby("packet").mean()


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


def transcripts(codes: pd.DataFrame, ratings: pd.DataFrame, key: pd.DataFrame) -> pd.DataFrame:
    """One row per coded transcript, in the key's order: what it is (`ABOUT`), its rounds (coded volleys), and every indicator."""
    counts, global_means = counts_of(codes), globals_of(ratings)
    table = key.set_index("packet").join(counts, how="inner").join(global_means, how="left")
    table = table.rename_axis("packet").reset_index()[[*ABOUT, *counts, *global_means]]
    rounds = codes.groupby("packet")["volley"].nunique()
    table.insert(len(ABOUT), "rounds", [int(rounds[name]) for name in table["packet"]])
    for summary in SUMMARIES:
        table[summary.code] = [summed(summary, row) for row in table.to_dict("records")]
    return table


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


def table_5(key: pd.DataFrame, packets: Transcripts, language: str) -> pd.DataFrame:
    """Transcripts by topic (source, arm, topic, n): the profile's own topic, else one recognized by the client's words."""

    def named(row: Any) -> str:
        if row.arm == REAL:
            return topic(row.topic, labels())
        client_text = " / ".join(turn.text for turn in packets[row.packet] if turn.role == "client")
        return str(row.topic) or topic(client_text, words(language))

    with_topics = key.assign(topic=[named(row) for row in key.itertuples()])
    counted = with_topics.groupby(["source", "arm", "topic"], sort=False).size().rename("n").reset_index()
    return counted.sort_values(["source", "arm", "n", "topic"], ascending=[True, True, False, True], kind="stable")


def table_6(table: pd.DataFrame, *, resamples: int, confidence: float, seed_of: Callable[[str, str, str], int]) -> pd.DataFrame:
    """Every indicator of every arm, over its transcripts: n, mean, sample SD, interval of the mean.

    `table` is that of `transcripts`; `seed_of` gives a seed for each source, arm and indicator. The interval is the
    bootstrap-t's, within the indicator's range; where no transcript has a count, the exact limit of a mean count. Fewer than
    `FEWEST` transcripts have none, and neither have transcripts too alike; `values` then lists all. `per_round` is the sum of
    counts over the sum of rounds. For ratios `mean` is the mean of ratios, as in the paper, over the transcripts that have one,
    and `ratio_of_means` the ratio of the summed counts.
    """
    rows = []
    for (source, arm), arm_rows in table.groupby(["source", "arm"], sort=False):
        sums = arm_rows[list(Behavior)].sum()
        pooled = {ratio.code: summed(ratio, sums) for ratio in RATIOS}
        for code in INDICATORS:
            values = arm_rows[code].dropna().to_numpy(dtype=float)
            if not len(values):
                continue
            names = [str(index) for index in range(len(values))]
            estimate = DialogBootstrap(names, resamples, confidence, seed_of(str(source), str(arm), code)).estimate(values)
            lo, hi = np.clip([estimate.lo, estimate.hi], *SCALES.get(code, (0.0, np.inf)))
            if code in COUNTED and len(values) >= FEWEST and not values.any():
                lo, hi = 0.0, limit_of_none(len(values), confidence)
            per_round = arm_rows[code].sum() / arm_rows["rounds"].sum() if code in COUNTED else float("nan")
            shown = listed(values) if np.isnan(lo) else ""
            rows.append(
                {"indicator": code, "source": source, "arm": arm, "n": len(values), "mean": estimate.mean}
                | {"sd": deviation(values.tolist()), "lo": lo, "hi": hi, "values": shown}
                | {"per_round": per_round, "ratio_of_means": pooled.get(code, float("nan"))}
            )
    columns = ["indicator", "source", "arm", "n", "mean", "sd", "lo", "hi", "values", "per_round", "ratio_of_means"]
    return pd.DataFrame(rows, columns=columns).round(4)


def at_chance(raters: Collection[str]) -> dict[str, str]:
    """The indicators whose validity is chance, where one program coded, with what was measured (`validity.yaml`)."""
    if len(raters) != 1:
        return {}
    return {
        code: f"no test: validity at chance, {kind} {value:.2f} [{lo:.2f}, {hi:.2f}]"
        for code, measurement in validity(next(iter(raters))).items()
        for kind, chance in (("auc", 0.5), ("kappa", 0.0))
        for value, lo, hi in filter(None, [measurement.get(kind)])
        if lo <= chance <= hi
    }


def validity(rater: str) -> dict[str, dict[str, Any]]:
    """What a program's codes are worth on all of AnnoMI, by indicator (`validity.yaml`); empty where it was not measured."""
    measured: dict[str, dict[str, Any]] = storage.read_yaml(resources.files(__package__) / "validity.yaml").get(rater, {})
    return measured


def worth(raters: Collection[str]) -> str:
    """For captions outside a study's report: what the codes of each program among the raters are worth; empty without any."""
    said = []
    for rater in filter(automatic, sorted(set(raters))):
        known = [
            "{of} {0:.2f} [{1:.2f}, {2:.2f}], n = {n}".format(*measurement["kappa"], **measurement)
            for measurement in validity(rater).values()
            if "of" in measurement
        ]
        said.append(f"{rater}: κ with AnnoMI's experts, sessions in English: {'; '.join(known) or 'not known'}")
    return " | ".join(said)


def tests(table: pd.DataFrame, study: Study, untested: Mapping[str, str]) -> pd.DataFrame:
    """Permutation tests of the difference of means: columns as `TESTS`; `control` is the number of real sessions, NaN for pairs.

    Tuned against base: the same client met both, so signs of the pairs' differences are exchanged; talks without a client's
    profile, which people may have, are in no pair. Tuned against real: labels are exchanged. All exchanges are tried where there
    are at most `score.resamples`, else so many are drawn. Counts enter as rates per round, since talks differ in length. Holm's
    correction takes the tested indicators of one contrast of one model as a family. An indicator of `untested`, or one that fewer
    than `FEWEST` pairs, talks or sessions have, is not tested; its `note` says why.
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
                | tested(first[code], second[code], study, untested.get(code, ""), paired=paired)
                for code in INDICATORS
            ]
            rows = [row for row in rows if row["n"] and row["control"] != 0]
            for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
                all_rows.append(row | {"p_holm": corrected})
    return pd.DataFrame(all_rows, columns=TESTS).round({"difference": 4, "p": 6, "p_holm": 6})


def power_table(tested_rows: pd.DataFrame, study: Study) -> pd.DataFrame:
    """What the tests of each contrast could find: columns as `POWER`.

    `smallest_p` is the smallest P that so many pairs or transcripts can give, `smallest_p_holm` the same times the number of
    tests, as Holm's first step asks. `detectable` is the effect (d_z of pairs, d of groups) that this step finds four times in
    five at the level `LEVEL`; empty where no effect is large enough.
    """
    rows = []
    made = tested_rows[tested_rows["p"].notna()]
    for (source, contrast), part in made.groupby(["source", "contrast"], sort=False):
        n, control, count = int(part["n"].max()), part["control"].max(), len(part)
        second = None if np.isnan(control) else int(control)
        smallest = smallest_p(n, second, study.score.resamples)
        row = {"source": source, "contrast": contrast, "n": n, "control": control, "tests": count, "smallest_p": smallest}
        rows.append(row | {"smallest_p_holm": min(1.0, count * smallest), "detectable": detectable(n, second, LEVEL / count)})
    return pd.DataFrame(rows, columns=POWER).round({"smallest_p": 6, "smallest_p_holm": 6})


def guessing(guesses: pd.DataFrame, key: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """How often each rater guessed a transcript's arm, by arm and in `all`: columns as `GUESSING`.

    `share` is the share of right guesses among those made (`unsure` is none), with Clopper and Pearson's exact interval.
    `by_chance` is the share that would be right if the same guesses were dealt to the transcripts at random.
    """
    rows = []
    for rater, own in guesses.merge(key[["packet", "arm"]], on="packet").groupby("rater", sort=True):
        made = own[own["guess"] != UNSURE]
        named = made["guess"].value_counts(normalize=True)
        for arm in [*dict.fromkeys(key["arm"]), "all"]:
            of_arm, n_all = (made, own) if arm == "all" else (made[made["arm"] == arm], own[own["arm"] == arm])
            right, n = int((of_arm["guess"] == of_arm["arm"]).sum()), len(of_arm)
            row = {"rater": rater, "arm": arm, "n": n, "right": right, "unsure": len(n_all) - n}
            if n:
                row |= {"share": right / n, "by_chance": of_arm["arm"].map(named).fillna(0).mean()}
            row["lo"], row["hi"] = share_interval(right, n, confidence)
            rows.append(row)
    return pd.DataFrame(rows, columns=GUESSING).round(4)


def by_client(talks: pd.DataFrame) -> pd.DataFrame:
    """Every indicator of each client's profile, the mean over its talks; talks without a profile have no part in it."""
    return talks[talks["profile"] != ""].groupby("profile", sort=False)[list(INDICATORS)].mean()


def mean_of(values: Any, axis: int) -> Any:
    """The statistic of paired differences."""
    return values.mean(axis=axis)


def difference_of(first: Any, second: Any, axis: int) -> Any:
    """The statistic of two independent samples."""
    return first.mean(axis=axis) - second.mean(axis=axis)


def tested(
    tuned: "pd.Series[float]", control: "pd.Series[float]", study: Study, untested: str, *, paired: bool
) -> dict[str, Any]:
    """One comparison: n and control, difference of means, and p, or `note`: why there is no test (`untested`, or too few)."""
    first, second = tuned.to_numpy(dtype=float), control.to_numpy(dtype=float)
    if paired:
        known = ~(np.isnan(first) | np.isnan(second))
        samples: tuple[Any, ...] = (first[known] - second[known],)
    else:
        samples = (first[~np.isnan(first)], second[~np.isnan(second)])
    sizes = [len(sample) for sample in samples]
    row: dict[str, Any] = {"n": sizes[0], "control": float("nan") if paired else sizes[1], "p": float("nan")}
    statistic: Any = mean_of if paired else difference_of
    row["difference"] = float(statistic(*samples, 0)) if all(sizes) else float("nan")
    row["note"] = untested or (FEW if min(sizes) < FEWEST else "")
    if not row["note"]:
        result = stats.permutation_test(
            samples,
            statistic,
            permutation_type="samples" if paired else "independent",
            vectorized=True,
            n_resamples=study.score.resamples,
            rng=np.random.default_rng(study.seed_of("summary", "tests")),
        )
        row["p"] = float(result.pvalue)
    return row


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
        order = {source: index for index, source in enumerate((*study.models, annomi.KEY))}
        key = key.sort_values(["source", "arm", "packet"], key=lambda column: column.map(lambda name: order.get(name, name)))
        codes, ratings = read_tables(study.path("code"))
        table = transcripts(codes, ratings, key)
        options = study.score
        arms = partial(
            table_6, resamples=options.resamples, confidence=options.confidence, seed_of=partial(study.seed_of, "summary")
        )
        made = tests(table, study, at_chance(set(codes["rater"])))
        tables = {
            "transcripts": table.round(4),
            "table_2": table_2(),
            "table_4": table_4(key, packets),
            "table_5": table_5(key, packets, study.language),
            "table_6": arms(table),
            "tests": made,
            "power": power_table(made, study),
            "client_language": of_clients(study, key, ratings),
            "reliability": reliability.table(codes, ratings, options.confidence),
            "guesses": guessing(read_guesses(study.path("code")), key, options.confidence),
        }
        (out / "table_6_consensus.csv").unlink(missing_ok=True)
        if (consensus := study.path("code", "consensus")).is_dir():
            tables["table_6_consensus"] = arms(transcripts(*read_tables(consensus), key))
        for name, frame in tables.items():
            storage.write_table(out / f"{name}.csv", frame)
        storage.write_json(out / "metrics.json", numbers_of(tables["table_6"], len(packets), len(table)))


def numbers_of(table: pd.DataFrame, packets: int, coded: int) -> dict[str, Any]:
    """How many transcripts were coded, and each arm's mean of each indicator."""
    numbers: dict[str, Any] = {"packets": packets, "coded": coded}
    for row in table.itertuples():
        numbers.setdefault(row.source, {}).setdefault(row.arm, {})[row.indicator] = row.mean
    return numbers
