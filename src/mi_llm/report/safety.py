"""The report's page on clients in danger: how base and tuned models act, as stage `safety` graded them.

Reads `safety/<model>/`: the talks, `safety.csv`, `guard.csv` and `validation.csv`. Beside every number of
grades stands how far whoever gave them agrees with a person.
"""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from mi_llm.dialog import Dialog, read_dialogs
from mi_llm.report.tables import around, kappa_text
from mi_llm.safety.checklist import DIMENSIONS, FAULTY, GRAVE, WITHOUT, Grade
from mi_llm.study import Study

NAMES: dict[str, str] = {name: dimension.name.en for name, dimension in DIMENSIONS.items()}
CHINESE: dict[str, str] = {dimension.name.en: dimension.name.zh for dimension in DIMENSIONS.values()}
OF_REPLIES = NAMES | {FAULTY: "harms, leaves its role, or isolates at all (other replies)"}
GRADES = {"best practice": "Best practice", "suboptimal": "Suboptimal", "harmful": "Harmful"}
TOLD = {  # what is told in short
    "asked": ("asks", Grade.BEST),
    "ignored": ("asks", Grade.HARMFUL),
    "acted": ("acts", Grade.BEST),
    "connected": ("connects", Grade.BEST),
    "harmed": ("harmless", Grade.HARMFUL),
    "left_role": ("role", Grade.HARMFUL),
}
EVERY = "every one"  # in a row of a rater who graded nothing


def read(study: Study, name: str) -> pd.DataFrame:
    """One table of stage `safety`, of all models with which clients in danger talked."""
    return pd.concat([pd.read_csv(study.path("safety", model, f"{name}.csv")) for model in study.safety.models])


def agreement(study: Study) -> dict[tuple[str, str], str]:
    """By rater and dimension, or `FAULTY`: Cohen's kappa, its interval and the number of replies; or why there is none."""
    table = read(study, "validation").drop_duplicates(["rater", "dimension"])
    return {(row.rater, row.dimension): kappa_text(row) for row in table.itertuples()}


def share(count: int, row: Any) -> str:
    """A share of talks with its interval; of so few that there is none, the counts."""
    return f"{count} of {row.n}" if math.isnan(row.lo) else around(row.share, row.lo, row.hi)


def in_short(study: Study, word: Callable[[str], str]) -> list[dict[str, Any]]:
    """For each rater, what every arm did with clients of high or imminent risk: how many talks have the grades of `TOLD`.

    `word` translates. Each entry has the rater, what the rater's grades are worth, and `arms`: arm, guard, n, and the counts.
    """
    table, known = read(study, "safety"), agreement(study)
    table = table[table["risk"] == GRAVE]
    raters = []
    for rater, graded in table.groupby("rater", sort=False):
        arms = []
        for (source, arm, guard), part in graded.groupby(["source", "arm", "guard"], sort=False):
            counts = part.set_index(["dimension", "grade"])["count"]
            row = {"arm": f"{source} {word(str(arm))}", "guarded": guard != WITHOUT, "n": int(part["n"].iloc[0])}
            arms.append(row | {name: int(counts[dimension, str(grade)]) for name, (dimension, grade) in TOLD.items()})
        worth = {word(name): word(known[str(rater), key]) for key, name in OF_REPLIES.items() if (rater, key) in known}
        raters.append({"rater": word(str(rater)), "worth": worth, "arms": arms})
    return raters


def outcomes(study: Study, *, pooled: bool) -> pd.DataFrame:
    """Share of talks with each grade, by dimension, arm and guard; `pooled`: clients of high or imminent risk together.

    A rater who graded no talk has one row, which says why.
    """
    table, known = read(study, "safety"), agreement(study)
    table = table[(table["risk"] == GRAVE) == pooled]
    rows = []
    keys = ["rater", "dimension", "risk", "source", "arm", "guard"]
    for (rater, dimension, risk, source, arm, guard), part in table.groupby(keys, sort=False):
        row: dict[str, Any] = {"Dimension": NAMES[str(dimension)]} | ({} if pooled else {"Risk": risk})
        row |= {"Arm": f"{source} {arm}", "Guard": guard, "Talks": part["n"].iloc[0]}
        row |= {GRADES[graded.grade]: share(graded.count, graded) for graded in part.itertuples()}
        rows.append(row | {"Graded by": rater, "κ with a person": known[str(rater), str(dimension)]})
    order = [*NAMES.values(), EVERY]
    rows.sort(key=lambda row: order.index(row["Dimension"]))
    for rater in dict.fromkeys(rater for rater, _ in known) if rows else ():
        if rater not in set(table["rater"]):
            absent = dict.fromkeys(rows[0], "—") | {"Dimension": EVERY, "Talks": 0, "Graded by": rater}
            rows.append(absent | {"κ with a person": known[rater, next(iter(DIMENSIONS))]})
    return pd.DataFrame(rows, columns=None if rows else ["Dimension"]).set_index("Dimension")


def told_once(outcomes: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str], dict[str, str]]:
    """A table of outcomes as the page shows it, and what it says in words instead.

    Left out are columns that say the same in every row, returned by their heading, and the rows of raters who graded nothing,
    returned by rater with the reason.
    """
    if "Talks" not in outcomes:
        return outcomes, {}, {}
    graded, absent = outcomes[outcomes["Talks"] > 0], outcomes[outcomes["Talks"] == 0]
    same = {str(name): str(column.iloc[0]) for name, column in graded.items() if column.nunique() == 1}
    grades = set(GRADES.values())  # a grade that no talk got is a result
    same = {name: value for name, value in same.items() if name not in grades}
    return graded.drop(columns=list(same)), same, dict(zip(absent["Graded by"], absent["κ with a person"], strict=True))


def validation(study: Study) -> pd.DataFrame:
    """How far each rater agrees with the person who graded single replies."""
    rows = [
        {"Graded by": rater, "Dimension": OF_REPLIES[dimension], "κ with a person": text}
        for (rater, dimension), text in agreement(study).items()
    ]
    return pd.DataFrame(rows).set_index("Graded by")


def graded(study: Study) -> bool:
    """Whether a person has graded replies in the study's language."""
    return bool(read(study, "validation")["n"].any())


def guarded(study: Study) -> pd.DataFrame:
    """What the guard did in how many talks, by risk: answered, put help lines under a reply, withheld a reply."""
    table = read(study, "guard")
    shown = pd.DataFrame(
        {
            "Risk": table["risk"],
            "Arm": table["source"] + " " + table["arm"],
            "Talks": table["n"],
            "Guard answered": table["answered"],
            "Share": [share(row.answered, row) for row in table.itertuples()],
            "Help lines under a reply": table["helped"],
            "Reply withheld": table["withheld"],
            "First answered at message, median": ["—" if math.isnan(first) else f"{first:g}" for first in table["first_message"]],
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
