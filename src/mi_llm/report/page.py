"""Stage `report`: one self-contained page with the study's tables and figures, in the paper's arrangement.

Reads what the other stages wrote. Writes `report/index.html` (no request leaves it) and `report/tables/*.csv`, one for every
table on the page.
"""

import random
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mi_llm import __version__, storage
from mi_llm.dialog import read_rounds
from mi_llm.report import figures, tables
from mi_llm.stage import stage
from mi_llm.study import Study

ARMS = ("base", "tuned")


def examples(study: Study) -> list[dict[str, Any]]:
    """Test rounds with the reference and, for each model, the base and the tuned reply: seeded, one a dialog where possible."""
    rounds = read_rounds(study.folder / "split" / "test_rounds.jsonl")
    replies = {
        (model, arm): {row["round"]: row["text"] for row in storage.read_lines(study.folder / "respond" / model / f"{arm}.jsonl")}
        for model in study.models
        for arm in ARMS
    }
    chance = random.Random(study.seed_of("report", "examples"))
    dialogs = sorted({sample.dialog for sample in rounds})
    chosen = [
        chance.choice([sample for sample in rounds if sample.dialog == dialog])
        for dialog in chance.sample(dialogs, min(study.report.examples, len(dialogs)))
    ]
    return [
        {
            "round": sample,
            "replies": [{"model": model, **{arm: replies[model, arm][sample.id] for arm in ARMS}} for model in study.models],
        }
        for sample in chosen
    ]


def provenance(study: Study) -> pd.DataFrame:
    """Which versions computed each kind of stage that this page comes after; others may or may not have run yet."""
    rows = []
    for path in sorted(study.folder.glob("*/**/provenance.json")):
        if path.parent.name in ("audit", "report"):
            continue
        found = storage.read_json(path)
        versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        rows.append({"stage": found["stage"], "versions": versions})
    return pd.DataFrame(rows).set_index("stage")


def table_html(table: pd.DataFrame) -> Markup:
    """A table as HTML, its text escaped."""
    return Markup(table.reset_index().to_html(index=False, border=0, na_rep="—", classes="data"))  # noqa: S704 — to_html escapes


def figure_2(study: Study) -> Markup:
    """Figure 2, or nothing where no ratings are recorded."""
    means = tables.rating_means(study)
    return Markup(figures.ratings(means, tables.chosen(study))) if len(means) else Markup("")  # noqa: S704 — drawn by us from numbers


def report(study: Study) -> None:
    """Write the page; see the module."""
    inputs = [study.folder / name for name in ("read", "rate", "screen", "translate", "split", "finetune", "respond", "score")]
    with stage(study, "report", None, inputs) as out:
        shown = {
            "dialog-features": tables.dialog_features(study),
            "repairs": tables.repairs(study),
            "ratings": tables.ratings(study),
            "screening": tables.screening(study),
            "scores": tables.figure_3(study),
            "other-scores": tables.other_scores(study),
            "signatures": tables.signatures(study),
            "loss": tables.losses(study),
            "provenance": provenance(study),
        }
        for name, table in shown.items():
            storage.write_text(out / "tables" / f"{name}.csv", table.to_csv(lineterminator="\n"))
        environment = Environment(loader=PackageLoader("mi_llm.report", "."), undefined=StrictUndefined, autoescape=True)
        page = environment.get_template("page.html.jinja").render(
            study=study,
            version=__version__,
            style=Markup((resources.files(__package__) / "page.css").read_text(encoding="utf-8")),  # noqa: S704 — our own file
            tables={name: table_html(table) for name, table in shown.items()},
            figure_2=figure_2(study),
            choice=tables.chosen(study),
            translated=storage.read_json(study.folder / "translate" / "metrics.json"),
            rated=storage.read_json(study.folder / "rate" / "metrics.json"),
            figure_3=Markup(figures.base_and_tuned(tables.scores(study), study.models)),  # noqa: S704 — drawn by us from numbers
            losses=Markup(figures.losses(shown["loss"])),  # noqa: S704 — drawn by us from numbers
            examples=examples(study),
            training={model: storage.read_json(study.folder / "finetune" / model / "metrics.json") for model in study.models},
            answers={model: storage.read_json(study.folder / "respond" / model / "metrics.json") for model in study.models},
            parts=storage.read_json(study.folder / "split" / "metrics.json"),
        )
        storage.write_text(out / "index.html", page)
        storage.write_json(out / "metrics.json", {"tables": len(shown), "figures": 3, "models": len(study.models)})
