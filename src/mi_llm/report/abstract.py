"""The report's first screen: what was found, as facts for a few sentences, and one figure of base and tuned models (CHART 1b).

Reads what stages `split`, `score`, `summary` and `safety` wrote. The sentences are in index.en.jinja and index.zh.jinja.
"""

from typing import Any

import pandas as pd

from mi_llm import storage
from mi_llm.paper.claims import claims
from mi_llm.report import figures, manual, published, tables
from mi_llm.study import ARMS, Study

METRIC = "bleu_4"  # the one score whose values the paper prints
SURE = 0.05  # a corrected P below it counts as a difference


def facts(study: Study) -> dict[str, Any]:
    """The numbers of the abstract, for both languages.

    `gains`: model, base, tuned, difference with its interval, in BLEU-4 points of 100; `rule`: the best of the simple rules, and
    how many tuned models score above it; `tests`: how many indicators of MITI differ between tuned and base after Holm's
    correction, of how many tests.
    """
    scores, table = first_set(tables.scores(study)), first_set(pd.read_csv(study.path("score", "paired.csv")))
    means = scores[scores["metric"] == METRIC].set_index(["model", "arm"])["mean"]
    pairs = table[(table["metric"] == METRIC) & table["second"].str.endswith(" base")]
    gains: list[dict[str, Any]] = []
    for row in pairs.to_dict("records"):
        model = str(row["second"]).removesuffix(" base")
        base, tuned = (means[model, arm] for arm in ARMS)
        gains.append({"model": model, "base": base, "tuned": tuned, "change": row["mean"], "lo": row["lo"], "hi": row["hi"]})
    rules = rule_scores(study)
    best = str(rules.idxmax())
    tested = manual.read(study, "tests")
    tested = tested[(tested["contrast"] == "tuned against base") & tested["p_holm"].notna()]
    above = sum(gain["tuned"] > rules[best] for gain in gains)
    test = storage.read_json(study.path("split", "metrics.json"))["test"]
    return {
        "gains": gains,
        "rounds": test["round_samples"],
        "dialogs": test["dialogs"],
        "rule": {"name": tables.BASELINE_NAMES[best], "score": rules[best], "above": above},
        "tests": {"all": len(tested), "sure": int((tested["p_holm"] < SURE).sum())},
    }


def figure(study: Study) -> dict[str, str]:
    """Base and tuned model of each, with the paper's values beside them and the simple rules as a band."""
    scores = first_set(tables.scores(study))
    printed = {
        (model, arm): float(claims()[claim].reported)
        for model in study.models
        if study.reproduction
        for arm, claim in published.bleu_claims(study, model).items()
    }
    of_metric = scores[scores["metric"] == METRIC]
    return figures.dumbbells(of_metric, rule_scores(study), [*study.models], printed)


def rule_scores(study: Study) -> "pd.Series[float]":
    """BLEU-4 of each simple rule, by its name."""
    rules = first_set(pd.read_csv(study.path("score", "baselines.csv"))).set_index("predictor")[METRIC]
    return rules.drop("reference", errors="ignore")


def first_set(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first test set, the study's main one."""
    return table[table["set"] == table["set"].iloc[0]] if len(table) else table
