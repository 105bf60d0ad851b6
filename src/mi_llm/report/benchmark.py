"""The report's part on what tuning costs: accuracies on multiple-choice questions beside those that the paper's Table 1 quotes.

Reads `benchmark/<model>/scores.csv`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mi_llm.benchmark.tasks import TABLE_1
from mi_llm.paper import models as paper_models
from mi_llm.report.tables import around, claimed, p_value
from mi_llm.study import Study

OWN = {"mi_health": "Health behavior and MI (the bundle's own)"}


def folders(study: Study, models: Sequence[str]) -> list[Path]:
    """The outputs of stage `benchmark` for these models."""
    return [study.path("benchmark", model) for model in models]


def printed(study: Study, model: str, task: str) -> str:
    """What Table 1 prints for a model's base and a task; a dash where it has no such number."""
    known = paper_models.of_format(study.models[model].chat_format)
    return claimed(f"T1-{known.table_1}-{TABLE_1[task].name}") if known and task in TABLE_1 else "—"


def table(study: Study) -> pd.DataFrame:
    """One row per model and task: accuracies in percent with intervals, change, test, and Table 1's; empty without models."""
    rows: list[dict[str, Any]] = []
    for model, folder in zip(study.benchmark.models, folders(study, study.benchmark.models), strict=True):
        for row in pd.read_csv(folder / "scores.csv").itertuples():
            rows.append(
                {
                    "Model": model,
                    "Questions": TABLE_1[row.task].name if row.task in TABLE_1 else OWN.get(row.task, row.task),
                    "Number": row.items,
                    "By guessing": f"{row.by_guessing:.1f}",
                    "Base": around(row.base, row.base_lo, row.base_hi),
                    **({"Base, paper": printed(study, model, row.task)} if study.reproduction else {}),
                    "Tuned": around(row.tuned, row.tuned_lo, row.tuned_hi),
                    "Tuned − base": around(row.change, row.lo, row.hi),
                    "P (Holm)": p_value(row.p_holm),
                }
            )
    return pd.DataFrame(rows).set_index("Model") if rows else pd.DataFrame(rows)
