"""The page of all test rounds: history, client, reference, and each model's replies before and after tuning, with scores.

Reads the test sets, the answers and `score/samples.csv`; the stage `report` writes it as `report/rounds.html` and, in Chinese,
`rounds.zh.html`. The page holds everything it shows, in the dialogs' order; its script only sorts and hides, so it is a plain
list where scripts do not run.
"""

from collections.abc import Sequence
from importlib import resources
from typing import TypedDict

import pandas as pd
from markupsafe import Markup

from mi_llm import storage
from mi_llm.dialog import Round
from mi_llm.report.tables import SET_NAMES
from mi_llm.score.metrics import METRIC_NAMES
from mi_llm.score.score import test_sets
from mi_llm.study import Study


class ShownReply(TypedDict):
    """What an arm replied, whether it was cut at the limit, and its scores in the order of the metrics."""

    text: str
    cut: bool
    scores: list[float]


class ShownModel(TypedDict):
    """A model's replies by arm, and what tuning gained in each metric (0 for an untuned model)."""

    name: str
    arms: dict[str, ShownReply]
    gains: list[float]


class ShownRound(TypedDict):
    """One round of one test set as the pages show it; `anchor` is its address in the page of rounds."""

    set: str
    anchor: str
    round: Round
    models: list[ShownModel]


def answers(study: Study) -> dict[tuple[str, str], dict[str, tuple[str, bool]]]:
    """The replies of each model and arm, by round, and whether they were cut."""
    return {
        (model, arm): {
            row["round"]: (row["text"], row.get("finish") == "length")
            for row in storage.read_lines(study.path("respond", model, f"{arm}.jsonl"))
        }
        for model in study.models
        for arm in study.arms(model)
    }


def shown_rounds(study: Study) -> list[ShownRound]:
    """Every round of every test set, in order."""
    samples = pd.read_csv(study.path("score", "samples.csv"), dtype={"round": str, "dialog": str})
    scores = samples.set_index(["set", "model", "arm", "round"])[list(METRIC_NAMES)]
    lines = dict(zip(scores.index, scores.to_numpy().tolist(), strict=True))
    replies = answers(study)
    shown: list[ShownRound] = []
    for name, rounds in test_sets(study.path("split")).items():
        for number, sample in enumerate(rounds, 1):
            models = []
            for model in study.models:
                arms: dict[str, ShownReply] = {}
                for arm in study.arms(model):
                    text, cut = replies[model, arm][sample.id]
                    arms[arm] = {"text": text, "cut": cut, "scores": lines[name, model, arm, sample.id]}
                pairs = zip(arms.get("tuned", arms["base"])["scores"], arms["base"]["scores"], strict=True)
                gains = [round(tuned - base, 4) for tuned, base in pairs]
                models.append(ShownModel(name=model, arms=arms, gains=gains))
            shown.append({"set": name, "anchor": f"{name}-{number}", "round": sample, "models": models})
    return shown


def page_of_rounds(study: Study, rounds: Sequence[ShownRound]) -> dict[str, object]:
    """What the page's template needs beyond what every page has."""
    return {
        "rounds": rounds,
        "sets": {name: SET_NAMES[name] for name in dict.fromkeys(shown["set"] for shown in rounds)},
        "dialogs": list(dict.fromkeys(shown["round"].dialog for shown in rounds)),
        "metrics": METRIC_NAMES,
        "script": Markup((resources.files(__package__) / "rounds.js").read_text(encoding="utf-8")),  # noqa: S704 — our own file
    }
