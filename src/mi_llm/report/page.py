"""Stage `report`: one self-contained page with the study's tables and figures, in the paper's arrangement.

Reads what the other stages wrote. Writes `report/index.html` and `report/rounds.html`, every test round with its replies (no
request leaves them), and `report/tables/*.csv`, one for every table on the page.
"""

import random
from collections.abc import Sequence
from importlib import resources

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mi_llm import __version__, storage
from mi_llm.miti.summary import COUNTED
from mi_llm.report import figures, manual, tables
from mi_llm.report.rounds import ShownRound, rounds_page, shown_rounds
from mi_llm.stage import stage
from mi_llm.study import Study


def examples(study: Study, shown: Sequence[ShownRound]) -> list[ShownRound]:
    """Some rounds of the study's test: seeded, one a dialog where possible."""
    test = [one for one in shown if one["set"] == shown[0]["set"]]
    chance = random.Random(study.seed_of("report", "examples"))
    dialogs = sorted({one["round"].dialog for one in test})
    return [
        chance.choice([one for one in test if one["round"].dialog == dialog])
        for dialog in chance.sample(dialogs, min(study.report.examples, len(dialogs)))
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


def figures_3(study: Study) -> dict[str, Markup]:
    """Figure 3 of each test set, by the set's name in words."""
    scores, baselines = tables.scores(study), pd.read_csv(study.folder / "score" / "baselines.csv")
    return {
        tables.SET_NAMES[name]: Markup(  # noqa: S704 — drawn by us from numbers
            figures.base_and_tuned(scores[scores["set"] == name], baselines[baselines["set"] == name], study.models)
        )
        for name in scores["set"].unique()
    }


def figure_arms(study: Study) -> Markup:
    """The indicators that do not grow with a talk's length, by arm; nothing where nothing was coded."""
    table = manual.read(study, "table_6")
    known = set(table["indicator"])
    names = {code: name for code, name in manual.NAMES.items() if code in known and code not in COUNTED}
    return Markup(figures.arms(table, names, study.models)) if names else Markup("")  # noqa: S704 — drawn by us from numbers


def report(study: Study) -> None:
    """Write the pages; see the module."""
    inputs = [study.folder / name for name in ("read", "rate", "screen", "translate", "split", "finetune", "respond", "score")]
    inputs += [study.folder / name for name in ("blind", "code", "summary", "miti")]
    with stage(study, "report", None, inputs) as out:
        shown = {
            "dialog-features": tables.dialog_features(study),
            "repairs": tables.repairs(study),
            "ratings": tables.ratings(study),
            "screening": tables.screening(study),
            "scores": tables.figure_3(study),
            "comparisons": tables.comparisons(study),
            "baselines": tables.baselines(study),
            "diagnostics": tables.diagnostics(study),
            "other-scores": tables.other_scores(study),
            "signatures": tables.signatures(study),
            "loss": tables.losses(study),
            "summary-scores": manual.formulas(study),
            "lengths": manual.lengths(study),
            "topics": manual.topics(study),
            "indicators": manual.indicators(study),
            "rates": manual.rates(study),
            "contrasts": manual.contrasts(study),
            "leaks": manual.leaks(study),
            "coder-validation": manual.validation(study),
            "coder-quality": manual.quality(study),
            "provenance": provenance(study),
        }
        agreement = manual.agreement(study)
        if len(agreement):
            shown["reliability"] = agreement
        for name, table in shown.items():
            storage.write_text(out / "tables" / f"{name}.csv", table.to_csv(lineterminator="\n"))
        environment = Environment(loader=PackageLoader("mi_llm.report", "."), undefined=StrictUndefined, autoescape=True)
        drawn, rounds = figures_3(study), shown_rounds(study)
        page = environment.get_template("page.html.jinja").render(
            study=study,
            version=__version__,
            style=Markup((resources.files(__package__) / "page.css").read_text(encoding="utf-8")),  # noqa: S704 — our own file
            tables={name: table_html(table) for name, table in shown.items()},
            figure_2=figure_2(study),
            choice=tables.chosen(study),
            translated=storage.read_json(study.folder / "translate" / "metrics.json"),
            rated=storage.read_json(study.folder / "rate" / "metrics.json"),
            figures_3=drawn,
            evaluation=storage.read_json(study.folder / "summary" / "metrics.json"),
            coder=manual.coders(study),
            globals_given=len(pd.read_csv(study.folder / "code" / "globals.csv")) > 0,
            figure_arms=figure_arms(study),
            losses=Markup(figures.losses(shown["loss"])),  # noqa: S704 — drawn by us from numbers
            examples=examples(study, rounds),
            training={model: storage.read_json(study.folder / "finetune" / model / "metrics.json") for model in study.models},
            answers={model: storage.read_json(study.folder / "respond" / model / "metrics.json") for model in study.models},
            parts=storage.read_json(study.folder / "split" / "metrics.json"),
        )
        storage.write_text(out / "index.html", page)
        storage.write_text(out / "rounds.html", rounds_page(study, rounds, environment))
        storage.write_json(out / "metrics.json", {"tables": len(shown), "figures": 3 + len(drawn), "models": len(study.models)})
