"""The audit's headline findings: each is shown only where its evidence is available; `findings.yaml` has the sentences."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from mi_llm import storage
from mi_llm.audit.chinese import chinese
from mi_llm.audit.codes import COLUMNS, ROUNDS, adherence_codes, ratio_bounds, unusual_units, welch
from mi_llm.audit.dialogs import NINE, missing_characters, missing_rounds, topic_test, tuned, unlabeled
from mi_llm.audit.evidence import Evidence
from mi_llm.audit.statements import MODELS, persuasion, pooled, within
from mi_llm.audit.verdict import Result
from mi_llm.paper import models as paper_models
from mi_llm.paper.claims import Paper

RARE = 0.01  # share of random samples below which a finding is made of it
PARTS = ("title", "found", "implies", "otherwise", "check")
LANGUAGES = ("en", "zh")
NUMBERS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)  # an English sentence may begin with one


@dataclass(frozen=True)
class Finding:
    """What kind of finding, the facts that its sentences need, and the claims and tables that show it.

    The kind is also the `cause` of the negative verdicts that the finding explains.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    def words(self, lang: str) -> dict[str, str]:
        """The finding in a language.

        `title`, what was `found`, what it `implies`, what `otherwise` could explain it, and how to `check` it in five minutes.
        """
        environment = Environment(undefined=StrictUndefined)  # noqa: S701 — plain words; the page escapes them
        environment.globals["word"] = lambda number: NUMBERS[number] if number < len(NUMBERS) else str(number)
        environment.globals["chinese"] = chinese
        sentences = every_sentence()[self.kind][lang]
        return {part: environment.from_string(sentences[part]).render(self.facts) for part in PARTS}


@cache
def every_sentence() -> dict[str, dict[str, dict[str, str]]]:
    """`findings.yaml`: by kind, language and part."""
    return dict(storage.read_yaml(resources.files(__package__) / "findings.yaml"))


def caused(results: dict[str, Result], kind: str) -> tuple[str, ...]:
    """The claims whose negative verdict comes from one kind of finding."""
    return tuple(name for name, result in results.items() if result.cause == kind)


def findings(paper: Paper, results: dict[str, Result], evidence: Evidence, tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """The findings, the weightiest first."""
    return [
        *reflections(paper, evidence),
        nine_dialogs(results, tables),
        *adherence(paper),
        persuading(paper),
        untuned(),
        *swapped(results, evidence),
        *rounds(results, evidence),
        *shifted(evidence),
        *trivial(tables),
        *annotators(tables, evidence),
        *sampled(tables, evidence),
        *ninth(paper, results, evidence),
        *exchanged(tables),
        *cited(results),
        *halves(paper),
        *(Finding(kind, facts_of(results, kind), caused(results, kind)) for kind in MINOR if caused(results, kind)),
    ]


MINOR = ("pairs", "cases", "topic", "launch")  # findings that consist of one claim


def facts_of(results: dict[str, Result], kind: str) -> dict[str, str]:
    """What a finding of one claim needs: the claim's recomputed number and note."""
    result = results[caused(results, kind)[0]]
    return {"recomputed": result.recomputed, "note": result.note}


def reflections(paper: Paper, evidence: Evidence) -> list[Finding]:
    """More reflections than counselor volleys, by the printed means."""
    more = [
        {"column": column, "reflections": paper[f"T6-TR-{column}"].reported, "volleys": paper[ROUNDS[column]].reported}
        for column in MODELS
        if paper[f"T6-TR-{column}"].mean.value > paper[ROUNDS[column]].mean.value
    ]
    if not more:
        return []
    nine = [sum(turn.role == "counselor" for turn in dialog.turns) for dialog in tuned(evidence, NINE)]
    facts = {
        "more": more, "nine": f"{fmean(nine):.2f}" if nine else "",
        "longest": max(paper[name.replace("rounds", "counselor")].mean.value for name in ROUNDS.values()),
        "real": paper["T4-real-counselor"].reported,
    }  # fmt: skip
    columns = [str(row["column"]) for row in more]
    return [Finding("reflections", facts, tuple(name for column in columns for name in (f"T6-TR-{column}", ROUNDS[column])))]


def nine_dialogs(results: dict[str, Result], tables: dict[str, pd.DataFrame]) -> Finding:
    """How many of each column's means in Table 6 are possible with the stated number of dialogs."""
    grid = tables["grim"].set_index(["cell", "n"])
    rows = {
        column: [f"T6-{row}-{column}" for row in dict.fromkeys(cell.split("-")[1] for cell in tables["grim"]["cell"])]
        for column in COLUMNS
    }

    def can(column: str, size: int) -> int:
        return sum(bool(grid.loc[(cell, size), "mean_possible"].any()) for cell in rows[column])

    of_nine = paper_models.tuned()[NINE].table_6
    glm, llama = (column for column in MODELS if column != of_nine)
    facts = {
        "many": len(rows[of_nine]), "baichuan_ten": can(of_nine, 10), "baichuan_nine": can(of_nine, 9),
        "glm": can(glm, 10), "llama": can(llama, 10), "real": can(paper_models.REAL, 30),
    }  # fmt: skip
    return Finding("nine_dialogs", facts, caused(results, "nine_dialogs"), ("grim",))


def adherence(paper: Paper) -> list[Finding]:
    """Ratios that do not follow from the raters' mean counts, and the codes with which they follow from each rater's."""
    outside = [column for column in COLUMNS if not within(paper, "ADH", column)]
    if not outside:
        return []
    bounds = {column: ratio_bounds(paper, "ADH", column) for column in COLUMNS}
    ratios = []
    for column in outside:
        low, ratio, high = bounds[column]
        numbers = {
            "printed": paper[f"T6-ADH-{column}"].reported,
            "ratio": f"{ratio:.3f}",
            "low": f"{max(low, 0):.3f}",
            "high": f"{high:.3f}",
        }
        example = adherence_codes(paper, column)
        share = (
            {"share": f"{example.share:.0%}", "alone": example.alone, "most": example.most, "dialogs": example.dialogs}
            if example
            else {}
        )
        ratios.append({"column": column, **numbers, **share})
    order = " > ".join(f"{column} {bounds[column][1]:.2f}" for column in sorted(bounds, key=lambda name: -bounds[name][1]))
    facts = {"ratios": ratios, "order": order, "examples": all("share" in ratio for ratio in ratios)}
    return [Finding("adherence", facts, (*(f"T6-ADH-{column}" for column in outside), "S11"), ("adherence_codes",))]


def persuading(paper: Paper) -> Finding:
    """Persuading in the models' dialogs beside the real ones, against the text's “avoiding nonadherent behaviors”."""
    times = persuasion(paper)
    facts = {
        "low": f"{min(times.values()):.1f}", "high": f"{max(times.values()):.1f}",
        "means": {column: paper[f"T6-PERS-{column}"].reported for column in COLUMNS},
        "tests": {column: f"{welch(paper, 'PERS', column)['p']:.3f}" for column in MODELS},
        "pooled": f"{pooled(paper, 'PERS')[0]:.2f}", "real": paper["T6-PERS-Real"].reported,
        "permitted": f"{pooled(paper, 'PwP')[0]:.2f}", "permitted_real": paper["T6-PwP-Real"].reported,
    }  # fmt: skip
    return Finding("persuading", facts, ("S10", *(f"T6-PERS-{column}" for column in COLUMNS)), ("comparisons",))


def swapped(results: dict[str, Result], evidence: Evidence) -> list[Finding]:
    """Table 3's two columns of volley lengths, exchanged."""
    names = caused(results, "swapped")
    if not {"T3-test-counselor", "T3-test-client"} <= set(names):
        return []
    counselor, client = results["T3-test-counselor"], results["T3-test-client"]
    facts = {
        "client": client.recomputed, "client_sd": client.recomputed_sd, "counselor": counselor.recomputed,
        "counselor_sd": counselor.recomputed_sd, "dialogs": len(evidence.published), "cases": "T3-CPsy-counselor" in names,
    }  # fmt: skip
    return [Finding("swapped", facts, names, ("table3",))]


def rounds(results: dict[str, Result], evidence: Evidence) -> list[Finding]:
    """Why Table 3's mean rounds of the test dialogs are not the samples per dialog."""
    if not evidence.published or not caused(results, "rounds"):
        return []
    facts = unlabeled(evidence) | {"per_dialog": results["X-367b"].recomputed, "samples": results["X-367"].recomputed}
    return [Finding("rounds", facts, ("X-367b", "T3-test-rounds"), ("table3",))]


def shifted(evidence: Evidence) -> list[Finding]:
    """The published test rounds that do not pair a client with the counselor who answers."""
    if not evidence.has("release"):
        return []
    table = evidence.alignment
    bad = table[table["status"] == "shifted"]
    facts = {
        "bad": len(bad), "all": len(table), "reasons": bad["reason"].value_counts().to_dict(),
        "by_client": int((table["output_role"] == "client").sum()), "repaired": evidence.metrics("read", "release")["rounds_aligned"],
    }  # fmt: skip
    return [Finding("shifted", facts, ("X-367", "X-367b"), ("alignment",))]


def trivial(tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """Replies by simple rules against the paper's models."""
    if "baselines" not in tables:
        return []
    table = tables["baselines"].set_index("predictor")
    base = table[table.index.str.endswith(", base")]["bleu_4"]
    after = table[table.index.str.endswith(", tuned")]["bleu_4"]
    names = ("echo_client", "constant", "previous_reply", "random_reference")
    ends = {"base_low": base.min(), "base_high": base.max(), "tuned_low": after.min(), "tuned_high": after.max()}
    facts = {
        "over": sum(bool(table.loc[name, "bleu_4"] > base.max()) for name in names),
        "scores": {name: f"{table.loc[name, 'bleu_4']:.2f}" for name in names},
        **{name: f"{value:.2f}" for name, value in ends.items()},
    }
    shown = tuple(f"X-bleu-base-{model.figure_3}" for model in paper_models.tuned().values())
    return [Finding("trivial", facts, shown, ("baselines", "baselines_aligned"))]


def annotators(tables: dict[str, pd.DataFrame], evidence: Evidence) -> list[Finding]:
    """Agreement on simple and complex reflections."""
    if "annomi_agreement" not in tables:
        return []
    table = tables["annomi_agreement"].set_index("code")
    if "reflection_type" not in table.index:
        return []
    kind, present = table.loc["reflection_type"], table.loc["reflection_present"]
    source = evidence.literature["sources"]["miti-4"]
    facts = {
        "pairs": int(kind["n_pairs"]), "low": f"{kind['kappa_min']:.2f}", "high": f"{kind['kappa_max']:.2f}",
        "kind": f"{kind['fleiss']:.2f} [{kind['lo']:.2f}, {kind['hi']:.2f}]",
        "present": f"{present['fleiss']:.2f} [{present['lo']:.2f}, {present['hi']:.2f}]", "source": f"{source['title']}, {source['url']}",
    }  # fmt: skip
    return [Finding("annotators", facts, ("S2", "S4"), ("annomi_agreement",))]


def sampled(tables: dict[str, pd.DataFrame], evidence: Evidence) -> list[Finding]:
    """The 30 AnnoMI transcripts that, by one reading of a round, are unlikely to be a random sample."""
    if "sample_of_transcripts" not in tables or tables["sample_of_transcripts"]["p_mean"].iloc[0] >= RARE:
        return []
    table = tables["sample_of_transcripts"].set_index(["pool", "unit"])
    pool, topics = table.loc[("all", "rounds")], tables["real_topics"]
    oddest = topics.loc[topics["p"].idxmin()]
    facts = {
        "transcripts": int(pool["transcripts"]), "mean": f"{pool['mean']:.2f}", "sd": f"{pool['sd']:.2f}",
        "p_all": f"{pool['p_mean']:.4f}", "p_high": f"{table.loc[('high', 'rounds'), 'p_mean']:.4f}",
        "p_volleys": f"{table.loc[('all', 'volleys'), 'p_mean']:.2f}", "p_high_volleys": f"{table.loc[('high', 'volleys'), 'p_mean']:.2f}",
        "p_topics": f"{topic_test(evidence):.4f}", "topic": oddest["topic"], "topic_n": int(oddest["reported"]),
        "topic_expected": f"{oddest['expected']:.1f}",
    }  # fmt: skip
    shown = ("X-30real", "T4-real-rounds", f"T5-real-{str(oddest['topic']).replace(' ', '_')}")
    return [Finding("sampled", facts, shown, ("real_topics", "sample_of_transcripts"))]


def cited(results: dict[str, Result]) -> list[Finding]:
    """Table 1's rows that belong to another model."""
    names = caused(results, "cited")
    return [Finding("cited", {"note": results[names[0]].note}, names)] if names else []


def halves(paper: Paper) -> list[Finding]:
    """Values of Table 6 that fit the stated number of dialogs, but not the kind of codes that the rest of their block fits."""
    names = unusual_units(paper)
    printed = {name: f"{paper[name].reported} ({paper[name].reported_sd})" for name in names}
    return [Finding("halves", {"cells": printed}, tuple(names), ("grim",))] if names else []


def ninth(paper: Paper, results: dict[str, Result], evidence: Evidence) -> list[Finding]:
    """The missing dialog that Table 4 still counts."""
    dialogs = tuned(evidence, NINE)
    claim = f"T4-{paper_models.tuned()[NINE].table_4}"
    stated = int(paper[f"{claim}-n"].reported)
    number = missing_rounds(dialogs, paper[f"{claim}-rounds"]) if len(dialogs) == stated - 1 else None
    if number is None:
        return []
    sizes = {role: missing_characters(dialogs, paper[f"{claim}-{role}"], role, number) for role in ("counselor", "client")}
    characters = {role: " or ".join(map(str, fitting)) for role, fitting in sizes.items()}
    return [Finding("ninth", {"dialogs": len(dialogs), "rounds": number, **characters}, caused(results, "ninth"))]


def exchanged(tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """A stretch of a workbook dialog in which the speakers seem exchanged."""
    if "exchanged" not in tables or tables["exchanged"].empty:
        return []
    stretches = tables["exchanged"].to_dict("records")
    return [Finding("exchanged", {"stretches": stretches}, ("T4-bai-counselor", "T4-bai-client"), ("exchanged",))]


def untuned() -> Finding:
    """The missing control: untuned models were not coded."""
    return Finding("untuned", claims=("S15",))
