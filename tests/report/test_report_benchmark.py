"""What tuning costs, in the report: beside Table 1, and only where the study has measured it."""

import pandas as pd
import pytest
from scored import Page
from tiny import study_with

from mi_llm.benchmark.benchmark import compared
from mi_llm.problem import Problem
from mi_llm.report.benchmark import table
from mi_llm.report.page import report
from mi_llm.study import Study

MODEL = "tiny-glm4"


def test_the_report_shows_the_change_beside_table_1(scored: Study) -> None:
    page = scored.path("report", "index.html")
    assert "the benchmarks are not run here" in page.read_text(encoding="utf-8")
    study = study_with(benchmark_models=f"[{MODEL}]")
    with pytest.raises(Problem, match=r"benchmark/tiny-glm4.* missing"):
        report(study)
    right = [{"task": task, "options": 4, "base_right": 0, "tuned_right": 1} for task in ("ceval-valid", "mi_health")] * 20
    folder = study.path("benchmark", MODEL)
    folder.mkdir()
    compared(pd.DataFrame(right), study.score.confidence).to_csv(folder / "scores.csv", index=False)
    published, own = table(study).to_dict("records")
    assert (published["Questions"], published["Base, paper"], published["Tuned − base"][:6]) == ("C-Eval", "75.6", "100.00")
    assert (own["Questions"], own["Base, paper"]) == ("Health behavior and MI (the bundle's own)", "—")
    assert own["P (Holm)"] == "< .001"
    report(study)
    english, chinese = (Page(study.path("report", f"index{end}.html")) for end in ("", ".zh"))
    assert "the benchmarks are not run here" not in page.read_text(encoding="utf-8")
    assert english.ids == chinese.ids
    assert "benchmark" in english.ids
