"""The report's tables of the manual evaluation (paper, Tables 2, 4, 5 and 6), in a reproduction with the paper's beside ours.

Reads `summary/*.csv`, `blind/leaks.csv`, `miti/*.csv`, the raters in `code/codes.csv`, and clients' readiness in `simulate/`;
printed numbers are the audit's claims. A study's model stands beside the paper's model with the same chat format.
"""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from mi_llm import registry
from mi_llm.codebook import coding
from mi_llm.codebook.tables import automatic, coder_of, read_tables
from mi_llm.corpora import annomi
from mi_llm.dialog import read_dialogs
from mi_llm.language import language
from mi_llm.llm import ask
from mi_llm.miti.client_language import MEASURES
from mi_llm.miti.coder import llm
from mi_llm.miti.miti import CLIENT, CLIENT_CODES, EXPERTS
from mi_llm.miti.summary import COUNTED
from mi_llm.paper import models
from mi_llm.paper.claims import claims
from mi_llm.report.tables import around, claimed, kappa_text, p_value
from mi_llm.statistics import DialogBootstrap, listed
from mi_llm.study import REAL, Study

OR_VALUES = "Mean [interval], or all values"
REAL_COLUMNS = ("real", models.REAL)  # the real sessions' columns in Tables 4 and 6
SUMMARIES = (
    coding.REFLECTIONS,
    coding.COMPLEX_SHARE,
    coding.REFLECTIONS_TO_QUESTIONS,
    coding.TECHNICAL,
    coding.RELATIONAL,
    coding.ADHERENT,
    coding.NONADHERENT,
    coding.ADHERENT_RATIO,
)
NAMES: dict[str, str] = {entry.code: entry.name.en for entry in (*coding.GLOBALS, *coding.BEHAVIORS, *SUMMARIES)}
CHINESE: dict[str, str] = {entry.name.en: entry.name.zh for entry in (*coding.GLOBALS, *coding.BEHAVIORS, *SUMMARIES)}


def by_unit(study: Study) -> dict[str, dict[str, str]]:
    """The indicators that the tests between arms compare, code and name, by the unit of their differences."""
    of_globals = {entry.code for entry in (*coding.GLOBALS, coding.TECHNICAL, coding.RELATIONAL)}
    tested = set(read(study, "tests")["indicator"])
    units: dict[str, dict[str, str]] = {}
    for code, name in NAMES.items():
        if code in tested:
            unit = "points, 1 to 5" if code in of_globals else "number per round" if code in COUNTED else "ratio, no unit"
            units.setdefault(unit, {})[code] = name
    return units


def read(study: Study, name: str) -> pd.DataFrame:
    """One table of the stage `summary`."""
    return pd.read_csv(study.path("summary", f"{name}.csv"))


def coders(study: Study, lang: str) -> str:
    """Who coded, in words, so that nobody takes an automatic code for a person's."""
    codes, ratings = read_tables(study.path("code"))
    raters = sorted(codes["rater"].unique())
    by_coder = {coder: [rater for rater in raters if coder_of(rater) == coder] for coder in map(coder_of, raters)}
    named = [
        str(getattr(registry.modules(registry.CODERS)[coder].NAME, lang)).format(
            count=len(own), raters=", ".join(rater.removeprefix(f"{coder}:") for rater in own)
        )
        for coder, own in by_coder.items()
    ]
    beside = ", ".join(sorted(set(ratings["rater"]) - set(raters)))
    named += [{"en": "globals by {raters}", "zh": "整体评分由 {raters} 给出"}[lang].format(raters=beside)] if beside else []
    return "; ".join(named) or {"en": "nobody yet", "zh": "尚无"}[lang]


def mean_sd(mean: float, sd: float) -> str:
    """`mean (SD)`; without the SD, or a dash, where a number is missing."""
    if math.isnan(mean):
        return "—"
    return f"{mean:.2f}" if math.isnan(sd) else f"{mean:.2f} ({sd:.2f})"


def mean_or_values(row: Any) -> str:
    """The mean and its interval; where there is none, all values."""
    return around(row.mean, row.lo, row.hi) if pd.isna(row.values) else str(row.values).replace("-", "−")


def printed(study: Study, source: str, arm: str) -> tuple[str, str] | None:
    """The paper's columns in Tables 4 and 6 for an arm; None for an arm that it lacks, and where nothing is reproduced."""
    if not study.reproduction:
        return None
    if arm == REAL:
        return REAL_COLUMNS
    known = models.of_format(study.models[source].chat_format) if arm == "tuned" else None
    return (known.table_4, known.table_6) if known else None


def arm_name(source: str, arm: str) -> str:
    """An arm as the tables name it."""
    return "real (AnnoMI)" if arm == REAL else f"{source} {arm}"


def formulas(study: Study) -> pd.DataFrame:
    """Table 2, and the manual's thresholds."""
    table = read(study, "table_2")
    table["formula"] = table["code"] + " = " + table["formula"]
    shown = table[["name", "formula", "fair", "good"]].astype({"fair": object, "good": object})
    shown = shown.where(shown.notna(), "—")
    return shown.rename(columns={"name": "Indicator", "formula": "Formula", "fair": "Fair", "good": "Good"}).set_index(
        "Indicator"
    )


def thresholds(study: Study) -> dict[str, tuple[float, float]]:
    """The scores that the manual calls fair and good, by indicator."""
    table = read(study, "table_2").dropna(subset=["fair", "good"])
    return {row.code: (row.fair, row.good) for row in table.itertuples()}


def lengths(study: Study) -> pd.DataFrame:
    """Table 4; in a reproduction, ours and the paper's."""
    rows = []
    for row in read(study, "table_4").itertuples():
        cells: dict[str, Any] = {"Arm": arm_name(row.source, row.arm), "Dialogs": row.n}
        column = printed(study, row.source, row.arm)
        for feature, title in (("rounds", "Rounds"), ("counselor", "Counselor volley"), ("client", "Client volley")):
            cells[title] = mean_sd(getattr(row, f"{feature}_mean"), getattr(row, f"{feature}_sd"))
            if study.reproduction:
                cells[f"{title}, paper"] = claimed(f"T4-{column[0]}-{feature}") if column else "—"
        rows.append(cells)
    return pd.DataFrame(rows, columns=None if rows else ["Arm"]).set_index("Arm")


def topics(study: Study) -> pd.DataFrame:
    """Table 5: transcripts of each topic by arm; a model's arms met the same clients. And the paper's, if reproduced."""
    table = read(study, "table_5")
    table["Arm"] = [arm_name(row.source, row.arm) for row in table.itertuples()]
    wide = table.pivot_table(index="topic", columns="Arm", values="n", aggfunc="sum", fill_value=0, sort=False).astype(int)
    if wide.empty or not study.reproduction:
        return wide.rename_axis(index="Topic", columns=None)
    real, simulated = (
        {claim.claim: claim for claim in claims().values() if claim.method == method}
        for method in ("real_topic", "simulated_topic")
    )
    wide = wide.reindex([*wide.index, *(name for name in real | simulated if name not in wide.index)], fill_value=0)
    for title, known in (("real (AnnoMI), paper", real), ("3 models tuned, paper", simulated)):
        wide[title] = [known[name].reported if name in known else "—" for name in wide.index]
    return wide.rename_axis(index="Topic", columns=None)


def by_consensus(study: Study) -> pd.DataFrame:
    """Table 6 of what raters agree on and their coordinator settled; empty where nothing was settled."""
    if not study.path("summary", "table_6_consensus.csv").exists():
        return pd.DataFrame()
    return indicators(study, "table_6_consensus", paper=False)


def indicators(study: Study, name: str = "table_6", *, paper: bool = True) -> pd.DataFrame:
    """Table 6, one row per indicator: each arm's mean (SD), and in a reproduction what the paper printed for it."""
    table = read(study, name)
    columns: dict[str, dict[str, str]] = {}
    for (source, arm), arm_rows in table.groupby(["source", "arm"], sort=False):
        title = arm_name(str(source), str(arm))
        columns[title] = {row.indicator: mean_sd(row.mean, row.sd) for row in arm_rows.itertuples()}
        if paper and (column := printed(study, str(source), str(arm))):
            columns[f"{title}, paper"] = {code: claimed(f"T6-{code}-{column[1]}") for code in NAMES}
    wide = pd.DataFrame(columns).reindex(list(NAMES)).fillna("—")
    return wide.rename(index=NAMES).rename_axis("Indicator")


def rates(study: Study) -> pd.DataFrame:
    """Each arm's counts per round, and its ratios both ways; of few transcripts the values stand in the interval's place."""
    table = read(study, "table_6")
    rows = []
    for row in table.itertuples():
        if math.isnan(row.per_round) and math.isnan(row.ratio_of_means):
            continue
        ratio = not math.isnan(row.ratio_of_means)
        rows.append(
            {
                "Indicator": NAMES[row.indicator],
                "Arm": arm_name(row.source, row.arm),
                "Transcripts": row.n,
                OR_VALUES: mean_or_values(row),
                "Per round": "—" if math.isnan(row.per_round) else f"{row.per_round:.3f}",
                "Ratio of means": f"{row.ratio_of_means:.2f}" if ratio else "—",
            }
        )
    return pd.DataFrame(rows, columns=None if rows else ["Indicator"]).set_index("Indicator")


def contrasts(study: Study) -> pd.DataFrame:
    """The tests between arms."""
    table = read(study, "tests")
    shown = pd.DataFrame(
        {
            "Model": table["source"],
            "Contrast": table["contrast"],
            "Indicator": table["indicator"].map(NAMES),
            "n": sizes(table),
            "Difference": [f"{value:+.3f}".replace("-", "−") for value in table["difference"]],
            "P": table["p"].map(p_value),
            "P (Holm)": table["p_holm"].map(p_value),
            "Note": table["note"].fillna(""),
        }
    )
    return shown.set_index("Model")


def compared(study: Study) -> list[int]:
    """The fewest and the most transcripts of a tuned model that a test between arms compares."""
    counts = read(study, "tests")["n"]
    return sorted({int(counts.min()), int(counts.max())}) if len(counts) else []


def sizes(table: pd.DataFrame) -> list[str]:
    """How many a test compares: `10 pairs`, or `10 and 30`."""
    controls = table["control"].tolist()
    return [
        f"{n} pairs" if math.isnan(control) else f"{n} and {control:.0f}" for n, control in zip(table["n"], controls, strict=True)
    ]


def power(study: Study) -> pd.DataFrame:
    """What the tests between arms could find at all."""
    table = read(study, "power")
    shown = pd.DataFrame(
        {
            "Model": table["source"],
            "Contrast": table["contrast"],
            "n": sizes(table),
            "Tests": table["tests"],
            "Smallest possible P": table["smallest_p"].map(p_value),
            "Smallest possible P (Holm)": table["smallest_p_holm"].map(p_value),
            "Effect found 4 times in 5": ["none" if math.isnan(effect) else f"{effect:.1f}" for effect in table["detectable"]],
        }
    )
    return shown.set_index("Model")


def guesses(study: Study) -> pd.DataFrame:
    """How often raters guessed the arm of a transcript; empty where nobody was asked."""
    table = read(study, "guesses")
    shown = pd.DataFrame(
        {
            "Rater": table["rater"],
            "Arm": table["arm"],
            "Guesses": table["n"],
            "Cannot tell": table["unsure"],
            "Right [interval]": [around(row.share, row.lo, row.hi) for row in table.itertuples()],
            "Right by chance": ["—" if math.isnan(share) else f"{share:.2f}" for share in table["by_chance"]],
        }
    )
    return shown.set_index("Rater")


def blindness(study: Study) -> dict[str, str]:
    """The AUC of all measures together, by the arm that tuned is told from."""
    table = pd.read_csv(study.path("blind", "leaks.csv"))
    whole = table[table["kind"] == "all measures"]
    return {
        contrast.removeprefix("tuned against "): f"{auc:.2f}"
        for contrast, auc in zip(whole["contrast"], whole["auc"], strict=True)
    }


def leaks(study: Study) -> pd.DataFrame:
    """Which features of the blinded transcripts still tell arms apart."""
    table = pd.read_csv(study.path("blind", "leaks.csv"))
    shown = pd.DataFrame(
        {
            "Contrast": table["contrast"],
            "What": table["what"],
            "AUC": table["auc"].map("{:.2f}".format),
            "P": table["p"].map(p_value),
        }
    )
    return shown.set_index("Contrast")


def validation_rows(study: Study) -> pd.DataFrame:
    """For the figure: each coder's kappa with AnnoMI's experts, by coder and language of the sessions."""
    table = pd.read_csv(study.path("miti", "coder_validation.csv"))
    coders = table["coder"].replace("experts", "experts among themselves")
    return pd.DataFrame(
        {
            "panel": [f"{coder}: {sessions_in(code)}" for coder, code in zip(coders, table["language"], strict=True)],
            "row": table["code"],
            "value": table["kappa"],
            "lo": table["lo"],
            "hi": table["hi"],
            "aside": [f"n = {n}" for n in table["n"]],
        }
    )


def quality_rows(study: Study) -> pd.DataFrame:
    """For the figure: how often each score of a coder is higher in a session of high quality, by coder and language."""
    table = pd.read_csv(study.path("miti", "quality.csv"))
    return pd.DataFrame(
        {
            "panel": [f"{row.coder}: {sessions_in(row.language)}" for row in table.itertuples()],
            "row": [NAMES.get(code, code) for code in table["measure"]],
            "value": table["auc"],
            "lo": table["lo"],
            "hi": table["hi"],
            "aside": [f"n = {row.high} + {row.low}" for row in table.itertuples()],
        }
    )


def validation(study: Study) -> pd.DataFrame:
    """How far automatic coders agree with AnnoMI's experts, beside the experts among themselves."""
    table = pd.read_csv(study.path("miti", "coder_validation.csv"))
    shown = pd.DataFrame(
        {
            "Coder": table["coder"].replace("experts", "experts among themselves"),
            "Sessions in": table["language"].map(sessions_in),
            "Code": table["code"],
            "κ [interval], n volleys": [kappa_text(row) for row in table.itertuples()],
        }
    )
    return shown.set_index("Coder")


def quality(study: Study) -> pd.DataFrame:
    """Whether a coder's scores tell AnnoMI's sessions of high quality from those of low quality."""
    table = pd.read_csv(study.path("miti", "quality.csv"))
    shown = pd.DataFrame(
        {
            "Coder": table["coder"],
            "Sessions in": table["language"].map(sessions_in),
            "Score": [f"{NAMES.get(str(row.measure), row.measure)}, {row.unit}" for row in table.itertuples()],
            "AUC [interval]": [around(row.auc, row.lo, row.hi) for row in table.itertuples()],
            "High, low": [f"{row.high}, {row.low}" for row in table.itertuples()],
        }
    )
    return shown.set_index("Coder")


def sessions_in(code: str) -> str:
    """The language of AnnoMI's sessions: their own, or that into which they are translated."""
    name = language.load(code).name.en
    return name if code == annomi.LANGUAGE else f"{name}, translated"


KAPPA = {"en": "κ with AnnoMI's experts{}, sessions in ", "zh": "与 AnnoMI 专家的 κ{}，会谈语言："}
SAMPLE = {
    "en": " (on a few sessions written for this bundle, not on AnnoMI's own)",
    "zh": "（所用是为本研究包写的少数会谈，不是 AnnoMI 原有的）",
}
BRIEFLY = {
    "en": "{coder}: κ with AnnoMI's experts for main behaviors {kappa}",
    "zh": "{coder}：主要行为与 AnnoMI 专家的 κ 为 {kappa}",
}
OTHERS = {"en": "other behaviors", "zh": "其他行为"}
ALPHA = {"en": "globals, Krippendorff's α with experts", "zh": "整体评分，与专家的 Krippendorff α"}
UNKNOWN = "not known"
MARKS = {"en": (": ", "; "), "zh": ("：", "；")}
BEHAVIORS_KNOWN = ("main behavior", "question", "reflection", "complex reflection", "information", "advice")


def kappas(study: Study) -> dict[tuple[str, str, str], str]:
    """What an automatic code is worth: by coder, language and code, Cohen's kappa with AnnoMI's experts, its interval and n."""
    table = pd.read_csv(study.path("miti", "coder_validation.csv"))
    return {(row.coder, row.language, row.code): kappa_text(row) for row in table.itertuples()}


def alphas(study: Study, rater: str) -> dict[str, str]:
    """What a language model's globals are worth: by code, Krippendorff's ordinal alpha with each expert; empty if not known."""
    values: dict[str, list[str]] = {}
    for row in pd.read_csv(study.path("miti", "globals_validation.csv")).itertuples():
        raters = row.raters.split(", ")
        if row.measure == "alpha" and rater in raters and len(raters) == 2:
            values.setdefault(row.code, []).append(f"{around(row.value, row.lo, row.hi)}, n = {row.n}")
    return {code: " / ".join(of_code) for code, of_code in values.items()}


def worth(study: Study, lang: str, word: Callable[[str], str]) -> str:
    """Each program that coded the packets, and what its codes are worth; empty where people alone coded.

    What the codes are worth in the language of the packets comes first. Of codes that AnnoMI's experts did not give, and of
    globals without a table of experts' globals, it says that this is not known.
    """
    codes, ratings = read_tables(study.path("code"))
    coded, rated = set(codes["rater"]), set(ratings["rater"])
    own_sessions = "" if annomi.KEY in study.acquire.upstream else SAMPLE[lang]
    known, (colon, semicolon) = kappas(study), MARKS[lang]
    said = []
    for rater in filter(automatic, sorted(coded | rated)):
        parts: list[str] = []
        for code in dict.fromkeys((study.language, annomi.LANGUAGE)) if rater in coded else ():
            keys = [(rater, code, behavior) for behavior in BEHAVIORS_KNOWN if (rater, code, behavior) in known]
            values = semicolon.join(f"{word(key[2])} {known[key]}" for key in keys)
            head = "" if parts else KAPPA[lang].format(own_sessions)
            parts.append(f"{head}{word(sessions_in(code))}{colon}{values or word(UNKNOWN)}")
        parts += [f"{OTHERS[lang]}{colon}{word(UNKNOWN)}"] if rater in coded else []
        if rater in rated:
            values = semicolon.join(f"{word(NAMES[code])} {value}" for code, value in alphas(study, rater).items())
            parts.append(f"{ALPHA[lang]}{colon}{values or word(UNKNOWN)}")
        said.append(f"{word(rater)}{colon}{semicolon.join(parts)}")
    return " | ".join(said)


def worth_briefly(study: Study, lang: str, word: Callable[[str], str]) -> str:
    """For captions: of each program that coded the packets, kappa of the main behavior in their language; empty of people."""
    codes, ratings = read_tables(study.path("code"))
    known = kappas(study)
    said = [
        BRIEFLY[lang].format(coder=word(rater), kappa=word(known.get((rater, study.language, "main behavior"), UNKNOWN)))
        for rater in filter(automatic, sorted({*codes["rater"], *ratings["rater"]}))
    ]
    return MARKS[lang][1].join(said)


def client_worth(study: Study) -> pd.DataFrame:
    """What automatic codes of client language are worth: each coder's kappa by code, beside the experts' own, the ceiling."""
    table = pd.read_csv(study.path("miti", "coder_validation.csv"))
    table = table[table["code"].isin(CLIENT_CODES)]
    columns: dict[str, dict[str, str]] = {}
    for (coder, code), rows in table.groupby(["coder", "language"], sort=False):
        name = "experts among themselves" if coder == EXPERTS else str(coder)
        columns[f"{name}: {sessions_in(str(code))}"] = {row.code: kappa_text(row) for row in rows.itertuples()}
    return (
        pd.DataFrame(columns)
        .reindex([code for code in CLIENT_CODES if code in set(table["code"])])
        .fillna("—")
        .rename_axis("Code")
    )


def client_language(study: Study) -> pd.DataFrame:
    """Change talk by arm, its course, and how counselors answer to it; then AnnoMI's, as experts and coders hear them."""
    tables = [read(study, "client_language"), pd.read_csv(study.path("miti", "client_language.csv"))]
    known = kappas(study)
    rows = []
    for row in (row for table in tables for row in table.itertuples()):
        spoken = row.source == annomi.KEY and row.arm != REAL  # as it was spoken; all other clients speak the study's language
        values = [
            f"{sessions_in(code)}: {known.get((row.rater, code, CLIENT), UNKNOWN)}"
            for code in ((annomi.LANGUAGE,) if spoken else dict.fromkeys((study.language, annomi.LANGUAGE)))
        ]
        rows.append(
            {
                "Arm": f"AnnoMI, {row.arm}" if spoken else arm_name(row.source, row.arm),
                "Measure": NAMES.get(str(row.measure), row.measure),
                "Coder": row.rater,
                OR_VALUES: mean_or_values(row),
                "Transcripts": row.n,
                "κ with AnnoMI's experts, client talk": "; ".join(values) if row.measure in MEASURES else "—",
            }
        )
    if rows and (model := llm.rater(study)) not in {row["Coder"] for row in rows}:
        absent = {"Arm": "every arm", "Measure": "every one", "Coder": model, OR_VALUES: ask.NOT_RECORDED, "Transcripts": 0}
        rows.append(absent | {"κ with AnnoMI's experts, client talk": ask.NOT_RECORDED})
    return pd.DataFrame(rows, columns=None if rows else ["Arm"]).set_index("Arm")


def globals_worth(study: Study) -> pd.DataFrame:
    """How far a language model's globals agree with experts'; empty where there is no table of experts' globals."""
    return measured(pd.read_csv(study.path("miti", "globals_validation.csv")))


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """Measures of agreement with their intervals, as a reader sees them."""
    shown = pd.DataFrame(
        {
            "Measure": table["measure"],
            "Code": [NAMES.get(str(code), code) for code in table["code"]],
            "Raters": table["raters"],
            "n": table["n"],
            "Value [interval]": [around(row.value, row.lo, row.hi) for row in table.itertuples()],
        }
    )
    return shown.set_index("Measure")


def readiness(study: Study) -> pd.DataFrame:
    """The standardized clients' readiness to change (0 to 10) before and after a talk, by arm: means, or few values."""
    rows = []
    for model in study.models:
        for arm in study.arms(model):
            talks = read_dialogs(study.path("simulate", model, f"{arm}.jsonl"))
            ends = [talk.meta["readiness"] for talk in talks if talk.meta.get("readiness")]
            if not ends:
                continue
            seed = study.seed_of("readiness", model, arm)
            names = [str(index) for index in range(len(ends))]
            bootstrap = DialogBootstrap(names, study.score.resamples, study.score.confidence, seed)
            before, after = zip(*ends, strict=True)
            change = [last - first for first, last in ends]
            row: dict[str, Any] = {"Arm": arm_name(model, arm), "Talks": len(ends)}
            for name, values in (("Before", before), ("After", after), ("Change", change)):
                estimate = bootstrap.estimate(values)
                row[name] = (
                    listed(values).replace("-", "−")
                    if math.isnan(estimate.lo)
                    else around(estimate.mean, estimate.lo, estimate.hi)
                )
            rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["Arm"]).set_index("Arm")


def agreement(study: Study) -> pd.DataFrame:
    """How far raters agree; empty where fewer than two coded the same transcripts."""
    table = read(study, "reliability")
    more = {"Equal": table["agreement"].map("{:.0%}".format), "Note": table["note"].fillna("")}
    return measured(table).assign(**{name: list(column) for name, column in more.items()})
