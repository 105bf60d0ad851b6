"""The audit's headline findings: each is shown only where its evidence is available; `findings.yaml` has the sentences."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from mi_llm import storage
from mi_llm.audit.codes import COLUMNS, GLOBALS, ratio_bounds
from mi_llm.audit.dialogs import TENTH
from mi_llm.audit.evidence import Evidence
from mi_llm.audit.verdict import Result
from mi_llm.paper import models as paper_models
from mi_llm.paper.claims import Paper

RARE = 0.01  # share of random samples below which a finding is made of it
PARTS = ("title", "found", "implies", "otherwise")
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Finding:
    """What kind of finding, the facts that its sentences need, and the claims and tables that show it."""

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    def words(self, lang: str) -> dict[str, str]:
        """The finding in a language: `title`, what was `found`, what it `implies`, and what `otherwise` could explain it."""
        environment = Environment(undefined=StrictUndefined)  # noqa: S701 — plain words; the page escapes them
        sentences = every_sentence()[self.kind][lang]
        return {part: environment.from_string(sentences[part]).render(self.facts) for part in PARTS}


@cache
def every_sentence() -> dict[str, dict[str, dict[str, str]]]:
    """`findings.yaml`: by kind, language and part."""
    return dict(storage.read_yaml(resources.files(__package__) / "findings.yaml"))


def impossible(results: dict[str, Result], column: str) -> list[str]:
    """The ratings and counts of one of Table 6's columns whose mean or SD is impossible."""
    names = [name for name in results if name.startswith("T6-") and name.endswith(f"-{column}")]
    return [name for name in names if results[name].verdict == "inconsistent" and name.split("-")[1] not in ("CRR", "RQ", "ADH")]


def findings(paper: Paper, results: dict[str, Result], evidence: Evidence, tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """The findings, the weightiest first."""
    ordered = [nine_dialogs(results, tables), *adherence(results, paper), *swapped(results)]
    ordered += [
        *shifted(evidence),
        *trivial(tables),
        *annotators(tables),
        *sampled(results, tables),
        *cited(results, evidence),
        *one_deviation(results),
    ]
    ordered += [*ninth(results), untuned()]
    return ordered


def nine_dialogs(results: dict[str, Result], tables: dict[str, pd.DataFrame]) -> Finding:
    """How many of each column's means in Table 6 are possible with the stated number of dialogs."""
    grid = tables["grim"].set_index(["cell", "n"])
    rows = {
        column: [f"T6-{row}-{column}" for row in dict.fromkeys(cell.split("-")[1] for cell in tables["grim"]["cell"])]
        for column in COLUMNS
    }

    def can(column: str, size: int) -> int:
        return sum(bool(grid.loc[(cell, size), "mean_possible"].any()) for cell in rows[column])

    facts = {
        "many": len(rows["Baichuan"]), "baichuan_ten": can("Baichuan", 10), "baichuan_nine": can("Baichuan", 9),
        "glm": can("GLM", 10), "llama": can("Llama", 10), "real": can("Real", 30),
    }  # fmt: skip
    return Finding("nine_dialogs", facts, tuple(impossible(results, "Baichuan")[:3]), ("grim",))


def adherence(results: dict[str, Result], paper: Paper) -> list[Finding]:
    """Ratios that cannot follow from their counts."""
    names = [name for name in results if name.startswith("T6-ADH") and results[name].verdict == "inconsistent"]
    if not names:
        return []
    bounds = {column: ratio_bounds(paper, "ADH", column) for column in COLUMNS}
    ratios = []
    for name in names:
        low, ratio, high = bounds[name.split("-")[2]]
        numbers = {"printed": paper[name].reported, "ratio": f"{ratio:.3f}", "low": f"{max(low, 0):.3f}", "high": f"{high:.3f}"}
        ratios.append({"column": name.split("-")[2], **numbers})
    order = " > ".join(f"{column} {bounds[column][1]:.2f}" for column in sorted(bounds, key=lambda name: -bounds[name][1]))
    return [Finding("adherence", {"ratios": ratios, "order": order}, (*names, "S11"))]


def swapped(results: dict[str, Result]) -> list[Finding]:
    """Table 3's two columns of volley lengths, exchanged."""
    names = ("T3-test-counselor", "T3-test-client")
    if any(results[name].verdict not in ("reproduced", "close") for name in names):
        return []
    client, counselor = (results[name] for name in names)
    facts = {
        "client": client.recomputed, "client_sd": client.recomputed_sd, "counselor": counselor.recomputed, "counselor_sd": counselor.recomputed_sd,
    }  # fmt: skip
    return [Finding("swapped", facts, (*names, "T3-CPsy-counselor", "T3-CPsy-client"), ("table3",))]


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
    """Replies without a model against the paper's models."""
    if "baselines" not in tables:
        return []
    table = tables["baselines"].set_index("predictor")
    base = table[table.index.str.endswith(", base")]["bleu_4"]
    tuned = table[table.index.str.endswith(", tuned")]["bleu_4"]
    names = ("echo_client", "constant", "previous_reply", "random_reference")
    ends = {"base_low": base.min(), "base_high": base.max(), "tuned_low": tuned.min(), "tuned_high": tuned.max()}
    facts = {
        "over": sum(bool(table.loc[name, "bleu_4"] > base.max()) for name in names),
        "scores": {name: f"{table.loc[name, 'bleu_4']:.2f}" for name in names},
        **{name: f"{value:.2f}" for name, value in ends.items()},
    }
    shown = tuple(f"X-bleu-base-{model.figure_3}" for model in paper_models.tuned().values())
    return [Finding("trivial", facts, shown, ("baselines", "baselines_aligned"))]


def annotators(tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """Agreement on simple and complex reflections."""
    if "annomi_agreement" not in tables:
        return []
    table = tables["annomi_agreement"].set_index("code")
    if "reflection_type" not in table.index:
        return []
    kind, present = table.loc["reflection_type"], table.loc["reflection_present"]
    facts = {
        "pairs": int(kind["n_pairs"]), "kind": f"{kind['fleiss']:.2f}", "present": f"{present['fleiss']:.2f}",
        "low": f"{kind['kappa_min']:.2f}", "high": f"{kind['kappa_max']:.2f}",
    }  # fmt: skip
    return [Finding("annotators", facts, ("S2", "S4"), ("annomi_agreement",))]


def sampled(results: dict[str, Result], tables: dict[str, pd.DataFrame]) -> list[Finding]:
    """The 30 AnnoMI transcripts that are unlikely to be a random sample."""
    if "sample_of_transcripts" not in tables or tables["sample_of_transcripts"]["p_mean"].iloc[0] >= RARE:
        return []
    table = tables["sample_of_transcripts"].set_index(["pool", "unit"])
    pool = table.loc[("all", "rounds")]
    facts = {
        "topics_note": results["X-30real"].note, "rounds_note": results["T4-real-rounds"].note,
        "transcripts": int(pool["transcripts"]), "mean": f"{pool['mean']:.2f}", "sd": f"{pool['sd']:.2f}", "p_all": f"{pool['p_mean']:.4f}",
        "p_high": f"{table.loc[('high', 'rounds'), 'p_mean']:.4f}", "p_volleys": f"{table.loc[('all', 'volleys'), 'p_mean']:.2f}",
    }  # fmt: skip
    shown = ("X-30real", "T4-real-rounds", "T5-real-Reducing_alcohol_use")
    return [Finding("sampled", facts, shown, ("real_topics", "sample_of_transcripts"))]


def cited(results: dict[str, Result], evidence: Evidence) -> list[Finding]:
    """Table 1's rows that belong to another model."""
    names = [name for name in results if name.startswith("T1-") and results[name].verdict == "inconsistent"]
    if not names:
        return []
    sources = {entry["claim"]: entry for entry in evidence.literature["benchmarks"]}
    facts = {
        "note": results[names[0]].note,
        "cited": sources[names[0]]["model"],
        "printed": names[0].removeprefix("T1-").rpartition("-")[0],
    }
    return [Finding("cited", facts, tuple(names))]


def one_deviation(results: dict[str, Result]) -> list[Finding]:
    """Impossible values outside the Baichuan2 column."""
    names = [name for column in COLUMNS if column != "Baichuan" for name in impossible(results, column)]
    if not names:
        return []
    words = {True: "globals", False: "counts"}
    kinds = list(dict.fromkeys(words[name.split("-")[1] in GLOBALS] for name in names))
    return [
        Finding("one_deviation", {"cells": {name: results[name].note for name in names}, "kinds": kinds}, tuple(names), ("grim",))
    ]


def ninth(results: dict[str, Result]) -> list[Finding]:
    """The missing dialog that Table 4 still counts."""
    note = results["T4-bai-rounds"].note
    if TENTH not in note:
        return []
    return [Finding("ninth", {"note": note, "dialogs": results["T4-bai-n"].recomputed}, ("T4-bai-rounds", "T4-bai-n", "X-30sim"))]


def untuned() -> Finding:
    """The missing control: untuned models were not coded."""
    return Finding("untuned", claims=("S15",))
