"""Stage `audit`: every claim of the paper, checked by a named method, where the study is a reproduction of it.

Reads what `acquire` and `read` brought of the public corpora. Writes `audit/claims.csv` (one row per claim: id, location, reported,
reported_sd, n, recomputed, recomputed_sd, verdict, basis, cause, method, note), the tallies of its verdicts, the tables behind the
findings, the findings in words (`findings.json`), the page, `index.html` and in Chinese `index.zh.html`, and the draft of a letter to
the authors, `letter.md`. For a study that reproduces nothing it writes `metrics.json` alone: no claim is checked.
No verdict is written by hand: `paper/claims.csv` names a method for each claim, and `METHODS` holds them.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import resources

import pandas as pd

from mi_llm import storage
from mi_llm.audit import annomi, codes, counts, dialogs, statements
from mi_llm.audit.evidence import Evidence
from mi_llm.audit.findings import LANGUAGES, findings
from mi_llm.audit.letter import letter
from mi_llm.audit.page import pages
from mi_llm.audit.verdict import BASES, NEGATIVE, VERDICTS, Basis, Result
from mi_llm.corpora.annomi import KEY as ANNOMI
from mi_llm.frame.pages import SUFFIXES
from mi_llm.paper.claims import Claim, Paper, claims
from mi_llm.paper.models import tuned
from mi_llm.score.baselines import baselines
from mi_llm.stage import stage
from mi_llm.study import Study

Method = Callable[[Claim, Paper, Evidence], Result]
BY_BASIS: dict[Basis, tuple[Method, ...]] = {  # what each method compares a claim with, where its result does not say otherwise
    "data": (
        dialogs.dialog_features, dialogs.real_features, dialogs.simulated_features, dialogs.real_topic, dialogs.simulated_topic,
        counts.training_dialogs, counts.test_dialogs, counts.test_samples, counts.model_score, counts.instruction_years,
        counts.simulated_dialogs, counts.random_sample, counts.not_released,
    ),
    "paper": (
        dialogs.sum_of_topics, codes.possible_moments, codes.follows, codes.ratio_of_counts, counts.named_corpora,
        counts.rating_maximum, counts.sum_of_parts, counts.rounds_a_dialog, counts.appendix_setting, counts.unstated_settings,
        counts.number_of_raters, counts.correlation, statements.approached, statements.fewer_complex, statements.lower_ratio,
        statements.highest_complex_ratio, statements.all_fours, statements.around_three_and_a_half, statements.higher_empathy,
        statements.at_least_as_frequent, statements.more_information, statements.infrequent, statements.order_of_adherence,
        statements.smaller_deviations, statements.lengths, statements.most_frequent,
    ),
    "cited": (counts.cited_benchmark, counts.manual_formula, counts.cited_fact),
}  # fmt: skip
METHODS: dict[str, Method] = {method.__name__: method for methods in BY_BASIS.values() for method in methods}
BASIS: dict[str, Basis] = {method.__name__: basis for basis, methods in BY_BASIS.items() for method in methods}


def check(paper: Paper, evidence: Evidence) -> dict[str, Result]:
    """The result of every claim's method, by the claim's id; each with its basis."""
    results = {name: METHODS[claim.method](claim, paper, evidence) for name, claim in paper.items()}
    return {name: replace(result, basis=result.basis or BASIS[paper[name].method]) for name, result in results.items()}


def rows(paper: Paper, results: dict[str, Result]) -> pd.DataFrame:
    """The table of claims with their verdicts."""
    records = [
        {
            "id": name, "location": claim.location, "reported": claim.reported, "reported_sd": claim.reported_sd, "n": claim.n,
            "recomputed": results[name].recomputed, "recomputed_sd": results[name].recomputed_sd, "verdict": results[name].verdict,
            "basis": results[name].basis, "cause": results[name].cause, "method": claim.method, "note": results[name].note,
        }
        for name, claim in paper.items()
    ]  # fmt: skip
    return pd.DataFrame(records)


def tally(table: pd.DataFrame) -> pd.DataFrame:
    """How many claims have which verdict, by what they were compared with: columns basis, one per verdict, all."""
    counted = pd.crosstab(table["basis"], table["verdict"]).reindex(index=list(BASES), columns=list(VERDICTS), fill_value=0)
    return counted.assign(all=counted.sum(axis=1)).rename_axis(columns=None).reset_index()


def causes(table: pd.DataFrame) -> pd.DataFrame:
    """What the negative verdicts come from: columns cause (a kind of finding), claims, ids; a claim without a cause is one of its own."""
    negative = table[table["verdict"].isin(NEGATIVE)]
    named = negative.assign(cause=negative["cause"].where(negative["cause"] != "", negative["id"]))
    grouped = named.groupby("cause", sort=False)["id"].agg(claims="size", ids=" ".join).reset_index()
    return grouped.sort_values("claims", ascending=False, kind="stable", ignore_index=True)


def paper_scores(paper: Paper) -> pd.DataFrame:
    """The paper's models as rows of the baselines table; it gives BLEU-4 only."""
    records = []
    for arm, word in (("base", "base"), ("ft", "tuned")):
        for model in tuned().values():
            claim = paper[f"X-bleu-{arm}-{model.figure_3}"]
            records.append({"predictor": f"paper: {model.figure_3}, {word}", "bleu_4": float(claim.reported)})
    return pd.DataFrame(records)


def supporting(paper: Paper, evidence: Evidence) -> dict[str, pd.DataFrame]:
    """The tables behind the findings, by file name; tables whose data were unavailable are left out."""
    tables = {"grim": codes.grid(paper), "comparisons": codes.comparisons(paper), "missing": evidence.missing}
    if evidence.has("release"):
        for name, kind in (("baselines", "rounds"), ("baselines_aligned", "aligned")):
            tables[name] = pd.concat([baselines(evidence.rounds(kind), evidence.seed), paper_scores(paper)], ignore_index=True)
        tables |= {"table3": dialogs.table_3(evidence), "simulated_topics": dialogs.simulated_topics(evidence)}
        tables |= {"alignment": evidence.alignment, "exchanged": dialogs.exchanged(evidence)}
        evidence.baselines = tables["baselines"].iloc[:5].set_index("predictor")["bleu_4"].to_dict()
    if evidence.has(ANNOMI):
        tables |= {"annomi_behaviors": annomi.behaviors(evidence), "annomi_agreement": annomi.agreement(evidence)}
        tables["annomi_quality"] = annomi.by_quality(tables["annomi_behaviors"])
        tables |= {"real_topics": dialogs.real_topics(evidence), "sample_of_transcripts": dialogs.sample_of_transcripts(evidence)}
    return tables


def audit(study: Study) -> None:
    """Check the paper; see the module."""
    inputs = [study.path("acquire"), study.path("read")]
    with stage(study, "audit", None, inputs) as out:
        if not study.reproduction:
            storage.write_json(out / "metrics.json", {"claims": 0})
            return
        paper, evidence = claims(), Evidence(study)
        tables = supporting(paper, evidence)
        results = check(paper, evidence)
        table = rows(paper, results)
        tables |= {"tally": tally(table), "causes": causes(table)}
        for name, content in {"claims": table, **tables}.items():
            storage.write_table(out / f"{name}.csv", content)
        storage.write_text(out / codes.EXAMPLE, (resources.files(__package__) / codes.EXAMPLE).read_text(encoding="utf-8"))
        headlines = findings(paper, results, evidence, tables)
        numbers: dict[str, int] = {verdict: int((table["verdict"] == verdict).sum()) for verdict in VERDICTS}
        numbers |= {"claims": len(table), "statements": sum(claim.statement for claim in paper.values())}
        numbers |= {"findings": len(headlines), "causes": len(tables["causes"])}
        words = [{"kind": finding.kind, **{lang: finding.words(lang) for lang in LANGUAGES}} for finding in headlines]
        storage.write_json(out / "findings.json", words)
        for lang, page in pages(study, paper, results, headlines, tables=tables, counts=numbers, methods=METHODS).items():
            storage.write_text(out / f"index{SUFFIXES[lang]}.html", page)
        storage.write_text(out / "letter.md", letter(headlines, table))
        storage.write_json(out / "metrics.json", numbers)
