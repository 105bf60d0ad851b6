"""The report's page on clients in danger: how base and tuned models act, as stage `safety` graded them.

Reads `safety/<model>/`: the talks, `safety.csv`, `guard.csv` and `validation.csv`. Beside every number of
grades stands how far whoever gave them agrees with a person.
"""

import math
from typing import Any

import pandas as pd

from mi_llm.dialog import Dialog, read_dialogs
from mi_llm.report.tables import around
from mi_llm.safety.checklist import DIMENSIONS, GRAVE, WITHOUT
from mi_llm.study import Study

NAMES: dict[str, str] = {name: dimension.name.en for name, dimension in DIMENSIONS.items()}
CHINESE: dict[str, str] = {dimension.name.en: dimension.name.zh for dimension in DIMENSIONS.values()}
GRADES = {"best practice": "Best practice", "suboptimal": "Suboptimal", "harmful": "Harmful"}


def read(study: Study, name: str) -> pd.DataFrame:
    """One table of stage `safety`, of all models with which clients in danger talked."""
    return pd.concat([pd.read_csv(study.path("safety", model, f"{name}.csv")) for model in study.safety.models])


def agreement(study: Study) -> dict[tuple[str, str], str]:
    """By rater and dimension: Cohen's kappa with a person, its interval and the number of replies; or why there is none."""
    table = read(study, "validation").drop_duplicates(["rater", "dimension"])
    return {
        (row.rater, row.dimension): row.note if math.isnan(row.kappa) else f"{around(row.kappa, row.lo, row.hi)}, n = {row.n}"
        for row in table.itertuples()
    }


def share(count: int, row: Any) -> str:
    """A share of talks with its interval; of so few that there is none, the counts."""
    return f"{count} of {row.n}" if math.isnan(row.lo) else around(row.share, row.lo, row.hi)


def outcomes(study: Study, *, pooled: bool) -> pd.DataFrame:
    """Share of talks with each grade, by dimension, arm and guard; `pooled`: clients of high or imminent risk together."""
    table, known = read(study, "safety"), agreement(study)
    table = table[(table["risk"] == GRAVE) == pooled]
    rows = []
    keys = ["rater", "dimension", "risk", "source", "arm", "guard"]
    for (rater, dimension, risk, source, arm, guard), part in table.groupby(keys, sort=False):
        row: dict[str, Any] = {"Dimension": NAMES[str(dimension)]} | ({} if pooled else {"Risk": risk})
        row |= {"Arm": f"{source} {arm}", "Guard": guard, "Talks": part["n"].iloc[0]}
        row |= {GRADES[one.grade]: share(one.count, one) for one in part.itertuples()}
        rows.append(row | {"Graded by": rater, "κ with a person": known[str(rater), str(dimension)]})
    frame = pd.DataFrame(rows, columns=None if rows else ["Dimension"])
    if rows:
        order = list(NAMES.values())
        frame = frame.sort_values("Dimension", key=lambda names: names.map(order.index), kind="stable")
    return frame.set_index("Dimension")


def validation(study: Study) -> pd.DataFrame:
    """How far each rater agrees with the person who graded single replies."""
    rows = [
        {"Graded by": rater, "Dimension": NAMES[dimension], "κ with a person": text}
        for (rater, dimension), text in agreement(study).items()
    ]
    return pd.DataFrame(rows).set_index("Graded by")


def graded(study: Study) -> bool:
    """Whether a person has graded replies in the study's language."""
    return bool(read(study, "validation")["n"].any())


def guarded(study: Study) -> pd.DataFrame:
    """In how many talks the guard answered in place of the model, by risk."""
    table = read(study, "guard")
    shown = pd.DataFrame(
        {
            "Risk": table["risk"],
            "Arm": table["source"] + " " + table["arm"],
            "Talks": table["n"],
            "Guard answered": table["answered"],
            "Share": [share(row.answered, row) for row in table.itertuples()],
            "First at message, median": ["—" if math.isnan(first) else f"{first:g}" for first in table["first_message"]],
        }
    )
    return shown.set_index("Risk")


def example_talks(study: Study) -> list[Dialog]:
    """A talk of each arm of one model with one client in imminent danger, without the guard, drawn with the seed; or none."""
    chance = study.chance("report", "danger")
    model = chance.choice(study.safety.models)
    talks = [talk for arm in study.arms(model) for talk in read_dialogs(study.path("safety", model, f"{arm}.jsonl"))]
    talks = [talk for talk in talks if talk.meta["guard"] == WITHOUT]
    imminent = [talk for talk in talks if talk.meta["risk"] == "imminent"] or talks
    if not imminent:
        return []
    persona = chance.choice(sorted({talk.meta["persona"] for talk in imminent}))
    return [talk for talk in imminent if talk.meta["persona"] == persona]
