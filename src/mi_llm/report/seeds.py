"""The report's part on further seeds: what training again with another seed changes, beside what other dialogs would change.

Reads `score/samples.csv`, the study's own seed, and `seeds/<model>-<seed>/samples.csv`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mi_llm.report.tables import around, by_set
from mi_llm.score.metrics import METRIC_NAMES
from mi_llm.statistics import spread
from mi_llm.study import ARMS, Study

TUNED, DIFFERENCE = "Tuned", "Tuned − base"
SPREADS = ("seeds", "seeds_lo", "seeds_hi", "dialogs")


def folders(study: Study, models: Sequence[str]) -> list[Path]:
    """The outputs of stage `seeds` for these models."""
    return [study.path("seeds", f"{model}-{seed}") for model in models for seed in study.seeds.further]


def runs(study: Study, model: str) -> list[pd.DataFrame]:
    """Every reply's scores, a table for each seed, the study's own first. Base replies that no seed changes are the study's."""
    own = pd.read_csv(study.path("score", "samples.csv"), dtype={"dialog": str})
    own = own[own["model"] == model]
    tables = [own]
    for folder in folders(study, [model]):
        table = pd.read_csv(folder / "samples.csv", dtype={"dialog": str})
        tables.append(table if (table["arm"] == "base").any() else pd.concat([own[own["arm"] == "base"], table]))
    return tables


def spreads(study: Study) -> pd.DataFrame:
    """One row per test set, model, metric, and score or gain: its spread over seeds and dialogs, and the seeds' means."""
    rows: list[dict[str, Any]] = []
    for model in study.seeds.models if study.seeds.further else ():
        tables = runs(study, model)
        for name in tables[0]["set"].unique():
            arms = {arm: [table[(table["set"] == name) & (table["arm"] == arm)] for table in tables] for arm in ARMS}
            dialogs = list(arms["tuned"][0]["dialog"])
            for metric in METRIC_NAMES:
                base, tuned = (pd.DataFrame([list(table[metric]) for table in arms[arm]]).to_numpy(float) for arm in arms)
                for what, values in ((TUNED, tuned), (DIFFERENCE, tuned - base)):
                    seed_spread = spread(values, dialogs, study.score.confidence)
                    row = {"set": name, "model": model, "metric": metric, "what": what, "means": values.mean(axis=1).tolist()}
                    rows.append(row | vars(seed_spread.estimate) | {part: getattr(seed_spread, part) for part in SPREADS})
    return pd.DataFrame(rows)


def table(study: Study) -> pd.DataFrame:
    """The table of the seeds; empty where the study has no further ones."""
    known = spreads(study)
    if not len(known):
        return known
    shown = pd.DataFrame(
        {
            "set": known["set"],
            "Model": known["model"],
            "Metric": known["metric"].map(METRIC_NAMES),
            "Score": known["what"],
            "Seeds": known["means"].map(len),
            "Mean over seeds": [around(row.mean, row.lo, row.hi) for row in known.itertuples()],
            "Lowest and highest seed": [f"{min(means):.2f}, {max(means):.2f}".replace("-", "−") for means in known["means"]],
            "SD between seeds": [around(row.seeds, row.seeds_lo, row.seeds_hi) for row in known.itertuples()],
            "SD between dialogs": [around(row.dialogs, float("nan"), float("nan")) for row in known.itertuples()],
        }
    )
    return by_set(shown).set_index("Model")
