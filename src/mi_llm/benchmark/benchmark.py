"""Stage `benchmark@model`: what tuning costs. Base and tuned model choose among options (optional; beside the paper's Table 1).

Reads the checkpoint, `finetune/<model>/adapter/` and `benchmark.folder`. Writes to `benchmark/<model>/`: `items.csv` (of every
question the option that each arm finds most likely, and whether it is right; no question's text), `scores.csv` (each arm's
accuracy and the change, with intervals and McNemar's test) and `metrics.json`. EleutherAI's lm-evaluation-harness asks and
judges (`harness.py`), in the chat format in which the model was tuned.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from mi_llm import storage
from mi_llm.benchmark.tasks import missing
from mi_llm.engine.counselor import acting_as, adapters, local_counselors
from mi_llm.engine.load import checkpoint, enough_memory, prepare_torch
from mi_llm.engine.processes import refuse_company, refuse_untuned
from mi_llm.stage import stage
from mi_llm.statistics import changed_shares, holm, p_of_changes, share_interval
from mi_llm.study import ARMS, Study


def benchmark(study: Study, model: str) -> None:
    """Have base and tuned model answer the questions of each task, and compare them; see the module."""
    refuse(study, model)
    prepare_torch(study)
    inputs = [checkpoint(study, model), *adapters(study, model), Path(study.benchmark.folder)]
    with stage(study, "benchmark", model, inputs) as out:
        items = answered(study, model)
        storage.write_table(out / "items.csv", items)
        table = compared(items, study.score.confidence)
        storage.write_table(out / "scores.csv", table)
        numbers = table.set_index("task")[["items", "base", "tuned", "change"]].to_dict("index")
        storage.write_json(out / "metrics.json", numbers)


def refuse(study: Study, model: str) -> None:
    """Raise Problem for an untuned model, for several processes or GPUs, and without the harness or a task's files."""
    refuse_untuned(study, model, f"benchmark@{model}")
    refuse_company(f"benchmark@{model}")
    for problem in missing(study):
        raise problem


def answered(study: Study, model: str) -> pd.DataFrame:
    """One row per question: task, part, item, number of options; for each arm the option chosen (from 1), and if it is right."""
    from mi_llm.benchmark.harness import Examinee, examined, loaded_tasks  # needs a package that not everybody has

    options, system = study.benchmark, study.finetune.instruction_placement == "system"
    arms: dict[str, pd.DataFrame] = {}
    with loaded_tasks(study) as tasks:
        for counselor in local_counselors(study, model):
            examinee = Examinee(counselor, options.batch, system=system)
            room = enough_memory(f"benchmark@{model}", "benchmark.batch questions", "lower benchmark.batch")
            with acting_as(counselor.arm, counselor.network), room:
                arms[counselor.arm] = pd.concat([examined(examinee, name, parts) for name, parts in tasks.items()])
    questions = arms["base"].drop(columns=["chosen", "right"]).reset_index(drop=True)
    columns = {f"{arm}_{column}": arms[arm][column].to_numpy() for arm in ARMS for column in ("chosen", "right")}
    return questions.assign(**columns)


def compared(items: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Accuracies in percent, one row per task, with the change and its test; Holm's correction takes all tasks as one family.

    `by_guessing`: what choosing at random would give. `gained`, `lost`: questions that only the tuned, only the base has right.
    """
    rows: list[dict[str, Any]] = []
    for task, part in items.groupby("task", sort=False):
        n, right = len(part), {arm: part[f"{arm}_right"] for arm in ARMS}
        gained, lost = int((right["tuned"] > right["base"]).sum()), int((right["tuned"] < right["base"]).sum())
        row: dict[str, Any] = {"task": task, "items": n, "by_guessing": 100 * float((1 / part["options"]).mean())}
        for arm in ARMS:
            lo, hi = share_interval(int(right[arm].sum()), n, confidence)
            row |= {arm: 100 * float(right[arm].mean()), f"{arm}_lo": 100 * lo, f"{arm}_hi": 100 * hi}
        lo, hi = changed_shares(gained, lost, n, confidence)
        row |= {"change": 100 * (gained - lost) / n, "lo": 100 * lo, "hi": 100 * hi, "gained": gained, "lost": lost}
        rows.append(row | {"p": p_of_changes(gained, lost, n)})
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    table = pd.DataFrame(rows)
    return table.round({column: 4 for column in table if not column.startswith("p")})
