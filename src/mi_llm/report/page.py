"""Stage `report`: the study's site, with its tables and figures in the paper's arrangement, in English and Chinese.

Reads what the other stages wrote, `stages.csv` (Figure 1), `docs/datasheet.md` and `CITATION.cff`. Writes for each page
`report/<page>.html` and `report/<page>.zh.html` (no request leaves them), `report/tables/*.csv`, one for every table, and
`report/figures/*.svg` and `*.zh.svg`, one for every figure, and `*-phone.svg` for one of several panels. A page is a structure,
`templates/<page>.html.jinja`, which both languages share, and sentences, `templates/*.<language>.jinja`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from mi_llm import __version__, storage
from mi_llm.audit.verdict import VERDICTS
from mi_llm.dialog import Dialog, read_dialogs
from mi_llm.frame.pages import AUDIT, SUFFIXES, address, environment, style
from mi_llm.language import language
from mi_llm.miti.coder import lexical
from mi_llm.miti.summary import COUNTED
from mi_llm.report import abstract, benchmark, documents, figures, manual, published, safety, seeds, tables
from mi_llm.report.checklist import as_table, checklist
from mi_llm.report.chinese import chinese, translator
from mi_llm.report.rounds import ShownRound, page_of_rounds, shown_rounds
from mi_llm.report.stages import before, stages
from mi_llm.stage import stage
from mi_llm.statistics import FEWEST
from mi_llm.study import ARMS, REAL, Study

IN_NUMBERS = set("0123456789 .,%±+−<>()[]—")  # what cells of a column of numbers are made of
PAGES = ("index", "rounds", "safety", "models", "data", "checklist")


def examples(study: Study, shown: Sequence[ShownRound]) -> list[ShownRound]:
    """Rounds of the first test set, drawn with the seed, each from another dialog."""
    first_set = [sample for sample in shown if sample["set"] == shown[0]["set"]]
    chance = study.chance("report", "examples")
    dialogs = sorted({sample["round"].dialog for sample in first_set})
    return [
        chance.choice([sample for sample in first_set if sample["round"].dialog == dialog])
        for dialog in chance.sample(dialogs, min(study.report.examples, len(dialogs)))
    ]


def example_talk(study: Study) -> Dialog | None:
    """One talk of a tuned model with a standardized client, drawn with the seed; None where there are none."""
    talks = [talk for model in study.tuned for talk in read_dialogs(study.path("simulate", model, "tuned.jsonl"))]
    return study.chance("report", "talk").choice(talks) if talks else None


def provenance(study: Study) -> pd.DataFrame:
    """The versions that computed each stage before `report`; other stages may or may not have run yet."""
    rows, earlier = [], before("report")
    for path in sorted(study.folder.glob("*/**/provenance.json")):
        if path.relative_to(study.folder).parts[0] in earlier:
            record = storage.read_json(path)
            versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
            rows.append({"stage": record["stage"], "versions": versions})
    return pd.DataFrame(rows).set_index("stage")


def outcomes_in_words(outcomes: pd.DataFrame, lang: str) -> dict[str, Any]:
    """A table of the page on clients in danger: its rows, what is the same in all of them, and who graded nothing and why."""
    word = translator(lang)
    table, same, absent = safety.told_once(outcomes)
    return {
        "table": in_words(table, lang),
        "same": {name: word(value) for name, value in same.items()},
        "absent": {word(rater): word(reason) for rater, reason in absent.items()},
    }


def in_words(table: pd.DataFrame, lang: str) -> dict[str, list[Any]]:
    """A table's headings and rows as text, in a language; which columns hold numbers, and the headings in groups.

    A group is a heading, how many columns it stands over (2 where the paper's column is beside ours), and whether of numbers.
    """
    flat = table.reset_index()
    word = translator(lang)
    rows = [["—" if pd.isna(value) else str(value) for value in row] for row in flat.itertuples(index=False)]
    columns = [str(name) for name in flat.columns]
    cells = [{row[index] for row in rows} for index in range(len(columns))]
    numbers = [all(set(cell) <= IN_NUMBERS for cell in of) for of in cells]
    paired = [f"{name}, paper" in columns[index + 1 : index + 2] for index, name in enumerate(columns)]
    firsts = [index for index in range(len(columns)) if index == 0 or not paired[index - 1]]
    return {
        "columns": [word(name) for name in columns],
        "rows": [[word(cell) for cell in row] for row in rows],
        "numbers": numbers,
        "groups": [(word(columns[index]), 1 + paired[index], numbers[index]) for index in firsts],
    }


def figure_2(study: Study) -> dict[str, str]:
    """Figure 2; empty where no ratings are recorded."""
    means = tables.rating_means(study)
    return figures.ratings(means, tables.chosen(study)) if len(means) else {}


def figures_3(study: Study) -> dict[str, dict[str, str]]:
    """Figure 3 of each test set, by the name of its file."""
    scores, baselines = tables.scores(study), pd.read_csv(study.path("score", "baselines.csv"))
    spreads = seeds.spreads(study)
    return {
        f"scores-{name}": figures.base_and_tuned(
            scores[scores["set"] == name],
            baselines[baselines["set"] == name],
            [*study.models],
            spreads[(spreads["set"] == name) & (spreads["what"] == seeds.TUNED)] if len(spreads) else spreads,
        )
        for name in scores["set"].unique()
    }


def sizes(study: Study) -> dict[str, Any]:
    """For captions: how many dialogs of a corpus are rated, fewest and most, and each test set's rounds and dialogs."""
    rated, samples = (
        tables.rating_means(study),
        pd.read_csv(study.path("score", "samples.csv"), usecols=["set", "round", "dialog"]),
    )
    tested = samples.groupby("set", sort=False).nunique()
    return {
        "rated": sorted({int(rated["n"].min()), int(rated["n"].max())}) if len(rated) else [],
        "tested": {tables.SET_NAMES[str(name)]: dict(row) for name, row in tested.iterrows()},
    }


def figure_arms(study: Study) -> dict[str, str]:
    """The figure of the indicators that do not grow with a talk's length, by arm; empty where nothing was coded."""
    table, names = manual.read(study, "table_6"), ratios_and_scores(study)
    return figures.arms(table, names, [*study.models], manual.thresholds(study)) if names else {}


def figure_counts(study: Study) -> dict[str, str]:
    """The figure of the indicators that grow with a talk's length, by arm; empty where nothing was coded."""
    table = manual.read(study, "table_6")
    names = {code: name for code, name in manual.NAMES.items() if code in COUNTED and code in set(table["indicator"])}
    return figures.counts(table, names, [*study.models]) if names else {}


def figure_contrasts(study: Study) -> dict[str, str]:
    """The figure of the tests between arms; empty where there are none."""
    table = manual.read(study, "tests")
    return figures.contrasts(table, manual.by_unit(study), [*study.models], abstract.SURE) if len(table) else {}


def figure_leaks(study: Study) -> dict[str, str]:
    """The figure of the features that tell the arms apart; empty where nothing was blinded."""
    table = pd.read_csv(study.path("blind", "leaks.csv"))
    return figures.leaks(table, abstract.SURE) if len(table) else {}


def figure_intervals(rows: pd.DataFrame, start: float, measure: str) -> dict[str, str]:
    """A forest of values with intervals; empty where there are none."""
    return figures.intervals(rows, start, measure) if len(rows) else {}


def ratios_and_scores(study: Study) -> dict[str, str]:
    """The names of the indicators that do not grow with a talk's length, and that some transcript has, by code."""
    known = set(manual.read(study, "table_6")["indicator"])
    return {code: name for code, name in manual.NAMES.items() if code in known and code not in COUNTED}


def all_figures(study: Study, shown: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, Markup]]:
    """Every figure of the site, by the name of its SVG file, in each language; those with nothing to draw are left out."""
    drawn = {
        "abstract": abstract.figure(study),
        "stages": figures.pipeline(shown["stages"]),
        "ratings": figure_2(study),
        "loss": figures.losses(shown["loss"]) if len(shown["loss"]) else {},
        **figures_3(study),
        "indicators": figure_arms(study),
        "rates": figure_counts(study),
        "contrasts": figure_contrasts(study),
        "leaks": figure_leaks(study),
        "kappas": figure_intervals(manual.validation_rows(study), 0, "κ"),
        "quality": figure_intervals(manual.quality_rows(study), 0.5, "AUC"),
    }
    return {
        name: {lang: Markup(text) for lang, text in figure.items()}  # noqa: S704 — drawn by us from numbers
        for name, figure in drawn.items()
        if figure
    }


def all_tables(study: Study) -> dict[str, pd.DataFrame]:
    """Every table of the site, by the name of its CSV file."""
    shown = {
        "stages": figures.stages(),
        "settings": tables.settings(study),
        "counts": tables.counts(study),
        "dialog-features": tables.dialog_features(study),
        "ratings": tables.ratings(study),
        "screening": tables.screening(study),
        "loss": tables.losses(study),
        "training": tables.training(study),
        "scores": tables.figure_3(study),
        "comparisons": tables.comparisons(study),
        "baselines": tables.baselines(study),
        "diagnostics": tables.diagnostics(study),
        "replies": tables.replies(study),
        "other-scores": tables.other_scores(study),
        "signatures": tables.signatures(study),
        "summary-scores": manual.formulas(study),
        "lengths": manual.lengths(study),
        "topics": manual.topics(study),
        "indicators": manual.indicators(study),
        "rates": manual.rates(study),
        "contrasts": manual.contrasts(study),
        "power": manual.power(study),
        "leaks": manual.leaks(study),
        "client-language": manual.client_language(study),
        "client-language-worth": manual.client_worth(study),
        "readiness": manual.readiness(study),
        "safety": safety.outcomes(study, pooled=True),
        "safety-by-risk": safety.outcomes(study, pooled=False),
        "safety-guard": safety.guarded(study),
        "safety-validation": safety.validation(study),
        "sources": tables.sources(study),
        "repairs": tables.repairs(study),
        "not-had": tables.not_had(study),
        "provenance": provenance(study),
    }
    optional = {
        "coder-validation": manual.validation(study),
        "coder-quality": manual.quality(study),
        "seeds": seeds.table(study),
        "benchmark": benchmark.table(study),
        "reliability": manual.agreement(study),
        "guesses": manual.guesses(study),
        "indicators-consensus": manual.by_consensus(study),
        "globals-validation": manual.globals_worth(study),
    }
    shown |= {f"card-{model}": tables.card_scores(study, model) for model in study.tuned}
    shown |= {name: table for name, table in optional.items() if len(table)}
    return shown | (published.beside(study) if study.reproduction else {})


def absent(study: Study, shown: Mapping[str, pd.DataFrame]) -> set[str]:
    """The sections of the page of results that this study does not have."""
    there = {
        "benchmarks": study.reproduction,
        "ratings": bool(study.rate.corpora),
        "training": bool(study.tuned),
        "verdicts": study.reproduction,
        "findings": study.reproduction,
        "missing": len(shown["not-had"]) > 0,
    }
    return {section for section, present in there.items() if not present}


def of_paper(study: Study, shown: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """What the pages of a reproduction say of the paper, in both languages: the verdicts on its numbers, and the audit's."""
    if not study.reproduction:
        return {"at_scale": False, "counts": {}, "findings": []}
    verdicts = shown["published"]["Verdict"].value_counts()
    audited = storage.read_json(study.path("audit", "metrics.json"))
    return {
        "at_scale": published.at_scale(shown["published"]),
        "counts": {
            "all": len(shown["published"]),
            "agrees": verdicts.get(published.AGREES, 0),
            "differs": verdicts.get(published.DIFFERS, 0),
            "inconsistent": verdicts.get(published.INCONSISTENT, 0),
            "other": verdicts.get(published.OTHER, 0),
        },
        "audit": {name: audited[name] for name in VERDICTS},
        "audited": audited,
        "audit_names": {name: chinese(name) for name in VERDICTS},
        "findings": storage.read_json(study.path("audit", "findings.json")),
    }


def content(study: Study, shown: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """What the pages show in both languages."""
    rounds = shown_rounds(study)
    named = ratios_and_scores(study)
    return {
        **page_of_rounds(study, rounds),
        **of_paper(study, shown),
        "study": study,
        "speech": language.load(study.language),
        "version": __version__,
        "style": style(),
        "absent": absent(study, shown),
        "corpora": [tables.corpus_name(corpus) for corpus in study.corpora],
        "source_kinds": set(shown["sources"]["Source"]),
        "real_sessions": bool((pd.read_csv(study.path("blind", "key.csv"))["arm"] == REAL).any()),
        "abstract": abstract.facts(study),
        "drawn": all_figures(study, shown),
        "leak_sizes": sorted(set(pd.read_csv(study.path("blind", "leaks.csv"))["n"])),
        "choice": tables.chosen(study),
        "translated": storage.read_json(study.path("translate", "metrics.json")),
        "rated": storage.read_json(study.path("rate", "metrics.json")),
        "sets": {name: tables.SET_NAMES[name] for name in tables.scores(study)["set"].unique()},
        "talks": int(pd.read_csv(study.path("blind", "key.csv"))["arm"].isin(ARMS).sum()),
        "evaluation": storage.read_json(study.path("summary", "metrics.json")),
        "blindness": manual.blindness(study),
        "few": FEWEST,
        "validated": study.language in set(pd.read_csv(study.path("miti", "coder_validation.csv"))["language"]),
        "own_cues": lexical.rater(study) != "lexical",
        "globals_given": len(pd.read_csv(study.path("code", "globals.csv"))) > 0,
        "sizes": sizes(study),
        "sure": abstract.SURE,
        "pairs": manual.compared(study),
        "thresholds": {named[code]: limits for code, limits in manual.thresholds(study).items() if code in named},
        "examples": examples(study, rounds),
        "example_talk": example_talk(study),
        "danger_talks": safety.example_talks(study),
        "dimension_names": safety.NAMES,
        "graded": safety.graded(study),
        "division": storage.read_json(study.path("split", "metrics.json")),
        "bibtex": documents.bibtex(study),
    }


def in_language(study: Study, both: Mapping[str, Any], shown: Mapping[str, pd.DataFrame], lang: str) -> dict[str, Any]:
    """What the pages show in one language."""
    word = translator(lang)
    chinese_title = {"title": study.report.title_zh, "notice": study.report.notice_zh}
    return {
        **both,
        "lang": lang,
        "suffix": SUFFIXES[lang],
        "address": address,
        "linked": lambda path: study.reproduction or path != AUDIT,  # what is missing now is there when the run ends
        "words": word,
        "own_words": language.load(lang),
        "cards": documents.cards(study, lang),
        "datasheet": documents.datasheet(lang),
        "tables": {name: in_words(table, lang) for name, table in shown.items()},
        "outcomes": {name: outcomes_in_words(shown[name], lang) for name in ("safety", "safety-by-risk")},
        "danger_in_short": safety.in_short(study, word),
        "coder": manual.coders(study, lang),
        "worth": manual.worth(study, lang, word),
        "worth_briefly": manual.worth_briefly(study, lang, word),
        "drawn": {
            f"{name}{form}": figure[f"{lang}{form}"]
            for name, figure in both["drawn"].items()
            for form in figures.FORMS
            if f"{lang}{form}" in figure
        },
        "findings": [words[lang] for words in both["findings"]],
        "corpora": [word(name) for name in both["corpora"]],
        **(chinese_title if lang == "zh" else {"title": study.title, "notice": study.report.notice}),
    }


def report(study: Study) -> None:
    """Write the pages; see the module."""
    inputs = [*(study.path(name) for name in stages()["report"].reads), *seeds.folders(study, study.seeds.models)]
    inputs += [*benchmark.folders(study, study.benchmark.models), documents.DATASHEET, documents.CITATION]
    with stage(study, "report", None, inputs) as out:
        shown = all_tables(study)
        both = content(study, shown)
        templates = environment(__package__)
        for lang, suffix in SUFFIXES.items():
            context = in_language(study, both, shown, lang)
            parts = checklist(lang, context)
            items = [item for part in parts for item in part.items]
            context["checklist"] = parts
            context["counts"] = both["counts"] | {"questions": len(items), "answered": sum(bool(item.place) for item in items)}
            if lang == "en":
                shown["checklist"] = as_table(parts)
            for name, figure in context["drawn"].items():
                storage.write_text(out / "figures" / f"{name}{suffix}.svg", figure)
            for page in PAGES:
                text = templates.get_template(f"{page}.html.jinja").render(context, page=page)
                storage.write_text(out / f"{page}{suffix}.html", text)
        for name, table in shown.items():
            storage.write_text(out / "tables" / f"{name}.csv", storage.table_text(table, index=True))
        numbers = {"tables": len(shown), "figures": len(both["drawn"]), "models": len(study.models)}
        storage.write_json(out / "metrics.json", numbers)
