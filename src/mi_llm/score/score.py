"""Stage `score`: compare every reply with its reference (paper, Automatic Evaluation and Figure 3).

Reads `split/test_rounds.jsonl` (set `test`; `published` where `split/aligned_rounds.jsonl`, set `aligned`, stands beside it) and
`respond/<model>/{base,tuned}.jsonl`. Writes to `score/`: `samples.csv` (every reply's scores), `scores.csv` (means with intervals
over dialogs, and signatures), `paired.csv` (tuned against base, tuned models against each other), `baselines.csv` (replies
by simple rules), `diagnostics.csv` (length, repetition, empty replies) and `metrics.json`.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from mi_llm import storage
from mi_llm.dialog import Round, read_rounds
from mi_llm.problem import Problem
from mi_llm.score.baselines import baselines
from mi_llm.score.diagnostics import diagnostics, repeated_4grams
from mi_llm.score.libraries import Pooled, pooled_names, pooled_scores
from mi_llm.score.metrics import METRIC_NAMES, Family, families, main_scores, signatures
from mi_llm.stage import stage
from mi_llm.statistics import DialogBootstrap, d_z, holm, p_of_swaps, superiority
from mi_llm.study import Study

Arm = tuple[str, str]  # model, base or tuned


Tables = dict[str, pd.DataFrame]
PAIRED = ["first", "second", "metric", "mean", "lo", "hi", "p", "p_holm", "d_z", "superiority"]


def score(study: Study) -> None:
    """Score all models, base and tuned, on each test set; see the module."""
    split = study.path("split")
    arms: list[Arm] = [(model, arm) for model in study.models for arm in study.arms(model)]
    answers = {(model, arm): study.path("respond", model, f"{arm}.jsonl") for model, arm in arms}
    with stage(study, "score", None, [split, *answers.values()]) as out:
        replies = {arm: {answer["round"]: answer["text"] for answer in storage.read_lines(path)} for arm, path in answers.items()}
        tables_by_set: dict[str, Tables] = {}
        for name, rounds in test_sets(split).items():
            texts = {arm: texts_of(rounds, replies[arm], path) for arm, path in answers.items()}
            tables_by_set[name] = score_set(study, rounds, texts)
        for table in next(iter(tables_by_set.values())):
            combined = pd.concat([tables[table].assign(set=name) for name, tables in tables_by_set.items()])
            combined.insert(0, "set", combined.pop("set"))
            storage.write_table(out / f"{table}.csv", combined)
        first, *other_sets = tables_by_set
        numbers = {name: numbers_of(tables_by_set[name]) for name in other_sets}
        storage.write_json(out / "metrics.json", numbers_of(tables_by_set[first]) | numbers)


def test_sets(split: Path) -> dict[str, list[Round]]:
    """The test rounds by the name of their set; the set whose rounds are the study's test comes first."""
    asked, repaired = split / "test_rounds.jsonl", split / "aligned_rounds.jsonl"
    if repaired.exists():
        return {"published": read_rounds(asked), "aligned": read_rounds(repaired)}
    return {"test": read_rounds(asked)}


def texts_of(rounds: Sequence[Round], replies: dict[str, str], path: Path) -> list[str]:
    """The reply to each round."""
    missing = [sample.id for sample in rounds if sample.id not in replies]
    if missing:
        raise Problem(str(path), f"no answer to round {missing[0]}", f"answers to all {len(rounds)} rounds", "run respond again")
    return [replies[sample.id] for sample in rounds]


def score_set(study: Study, rounds: Sequence[Round], texts: dict[Arm, list[str]]) -> Tables:
    """The tables of one test set, by the names of their files."""
    dialogs, references = [sample.dialog for sample in rounds], [sample.counselor for sample in rounds]
    bootstrap = DialogBootstrap(dialogs, study.score.resamples, study.score.confidence, study.seed_of("score"))
    code = study.language
    pooled = {arm: pooled_scores(replies, references, code) for arm, replies in texts.items()}
    samples = sample_table(rounds, texts, pooled, code)
    by_arm: dict[Arm, pd.DataFrame] = dict(iter(samples.groupby(["model", "arm"], sort=False)))
    arms = {**texts, ("reference", "reference"): references}
    return {
        "samples": samples.round(4),
        "scores": pd.DataFrame([row for arm in texts for row in scores_of(arm, by_arm[arm], pooled[arm], bootstrap, code)]),
        "paired": compare_arms(study, by_arm, dialogs, bootstrap),
        "baselines": baselines(rounds, study.seed_of("score", "baselines"), code),
        "diagnostics": pd.DataFrame(
            [{"model": arm[0], "arm": arm[1], **diagnostics(replies, code)} for arm, replies in arms.items()]
        ),
    }


def sample_table(
    rounds: Sequence[Round], texts: dict[Arm, list[str]], pooled: dict[Arm, dict[str, Pooled]], code: str
) -> pd.DataFrame:
    """Every reply's scores, its length in characters and how it repeats itself; arm after arm, in the rounds' order."""
    references = [sample.counselor for sample in rounds]
    replies = [reply for of_arm in texts.values() for reply in of_arm]
    about = [
        {"model": model, "arm": arm, "round": sample.id, "dialog": sample.dialog} for model, arm in texts for sample in rounds
    ]
    parts = [
        pd.DataFrame(about),
        pd.DataFrame(main_scores(replies, references * len(texts), code)),
        pd.DataFrame({name: [value for arm in texts for value in pooled[arm][name].by_round()] for name in pooled_names(code)}),
        *(pd.DataFrame(family.of_rounds(replies, references * len(texts))) for family in families(code)),
        pd.DataFrame({"characters": map(len, replies), "repeated_4grams": map(repeated_4grams, replies)}),
    ]
    return pd.concat(parts, axis=1)


def scores_of(
    arm: Arm, samples: pd.DataFrame, pooled: dict[str, Pooled], bootstrap: DialogBootstrap, code: str
) -> list[dict[str, Any]]:
    """One arm's scores with their intervals and signatures: the mean over rounds, or sacreBLEU's and chrF's of all together."""
    rows = estimates(samples, pooled, families(code), bootstrap, signatures(code))
    return [{"model": arm[0], "arm": arm[1], **row} for row in rows]


def estimates(
    samples: pd.DataFrame,
    pooled: dict[str, Pooled],
    beside: Sequence[Family],
    bootstrap: DialogBootstrap,
    main: dict[str, str],
) -> list[dict[str, Any]]:
    """One row per score (metric, mean, lo, hi, signature): those of `main`, then the pooled ones and the families'.

    `samples` has a row per reply and a column per score.
    """
    settings = main | {name: score.signature for name, score in pooled.items()}
    settings |= {name: family.signature for family in beside for name in family.names}
    rows = []
    for metric, signature in settings.items():
        if metric in pooled:
            estimate = bootstrap.estimate_pooled(pooled[metric].counts, pooled[metric].score)
        else:
            estimate = bootstrap.estimate(samples[metric])
        rows.append({"metric": metric, **estimate.rounded(), "signature": signature})
    return rows


def compare_arms(
    study: Study, samples: dict[Arm, pd.DataFrame], dialogs: Sequence[str], bootstrap: DialogBootstrap
) -> pd.DataFrame:
    """Each tuned model against its base, then the tuned models against each other: rows of `paired.csv`.

    `mean` is of first minus second, sample by sample. Holm's correction takes all rows of the test set as one family.
    """
    models = list(dict.fromkeys(model for model, _ in samples))
    tuned = [model for model in models if (model, "tuned") in samples]
    pairs = [((model, "tuned"), (model, "base")) for model in tuned]
    pairs += [((first, "tuned"), (second, "tuned")) for first, second in combinations(tuned, 2)]
    rows: list[dict[str, Any]] = []
    for first, second in pairs:
        for metric in METRIC_NAMES:
            differences = samples[first][metric].to_numpy() - samples[second][metric].to_numpy()
            p = p_of_swaps(differences, dialogs, study.score.resamples, study.seed_of("score", "swaps"))
            rows.append(
                {"first": " ".join(first), "second": " ".join(second), "metric": metric}
                | bootstrap.estimate(differences).rounded()
                | {"p": p, "d_z": d_z(differences, dialogs), "superiority": superiority(differences)}
            )
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return pd.DataFrame(rows, columns=PAIRED).round({"p": 6, "p_holm": 6, "d_z": 4, "superiority": 4})


def numbers_of(tables: Tables) -> dict[str, Any]:
    """The main measures for `metrics.json`: model, arm (or `tuned minus base`), metric."""
    numbers: dict[str, Any] = {}
    scores, paired = tables["scores"], tables["paired"]
    for row in scores[scores["metric"].isin(list(METRIC_NAMES))].itertuples():
        numbers.setdefault(row.model, {}).setdefault(row.arm, {})[row.metric] = row.mean
    for row in paired[paired["second"].str.endswith(" base")].itertuples():
        numbers[row.second.removesuffix(" base")].setdefault("tuned minus base", {})[row.metric] = row.mean
    return numbers
