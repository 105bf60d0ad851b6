"""Further seeds in the report: the table, the dots of Figure 3, and what the pages say with and without them."""

import shutil

import numpy as np
import pandas as pd
import pytest
from scored import Page
from tiny import study_with

from mi_llm.problem import Problem
from mi_llm.report.figures import LINE
from mi_llm.report.page import report
from mi_llm.report.seeds import DIFFERENCE, TUNED, spreads
from mi_llm.statistics import spread
from mi_llm.study import Study

MODEL = "tiny-glm4"


@pytest.fixture
def reseeded(scored: Study) -> Study:
    """The miniature with two further seeds of one model, whose replies score a little better or worse."""
    study = study_with(seeds_models=f"[{MODEL}]", seeds_further="[1, 2]")
    own = pd.read_csv(study.path("score", "samples.csv"))
    for seed, shift in ((1, -4.0), (2, 2.5)):
        table = own[(own["model"] == MODEL) & (own["arm"] == "tuned")].copy()
        table["bleu_4"] += shift
        folder = study.path("seeds", f"{MODEL}-{seed}")
        folder.mkdir(parents=True)
        table.to_csv(folder / "samples.csv", index=False)
    return study


def test_the_table_has_both_spreads(reseeded: Study) -> None:
    known = spreads(reseeded).set_index(["metric", "what"])
    own = pd.read_csv(reseeded.path("score", "samples.csv"))
    tuned, base = (own[(own["model"] == MODEL) & (own["arm"] == arm)] for arm in ("tuned", "base"))
    gain = tuned["bleu_4"].to_numpy() - base["bleu_4"].to_numpy()
    expected = spread(np.stack([gain, gain - 4, gain + 2.5]), list(tuned["dialog"]), 0.95)
    row = known.loc[("bleu_4", DIFFERENCE)]
    assert (row["mean"], row["lo"], row["seeds"]) == pytest.approx((expected.estimate.mean, expected.estimate.lo, expected.seeds))
    assert row["means"] == pytest.approx([gain.mean(), gain.mean() - 4, gain.mean() + 2.5])
    assert expected.seeds == pytest.approx(np.std([0, -4, 2.5], ddof=1), rel=1e-3)  # every sample moved alike
    assert known.loc[("rouge_1", TUNED), "seeds"] == 0


def test_the_pages_show_the_seeds_and_say_what_one_cannot_tell(reseeded: Study) -> None:
    page = reseeded.path("report", "index.html")
    before = page.read_text(encoding="utf-8")  # of the study without further seeds
    assert "was trained once, with one seed" in before
    assert 'id="seeds"' not in before
    report(reseeded)
    english, chinese = (Page(reseeded.path("report", f"index{end}.html")) for end in ("", ".zh"))
    after = page.read_text(encoding="utf-8")
    assert "was trained once, with one seed" not in after
    assert english.ids == chinese.ids
    assert "seeds" in english.ids
    table = pd.read_csv(reseeded.path("report", "tables", "seeds.csv"))
    assert list(table["Seeds"]) == [3] * 8
    assert list(table["Score"][:2]) == [TUNED, DIFFERENCE]


def test_figure_3_has_a_dot_for_each_seed(reseeded: Study) -> None:
    def dots(text: str) -> int:
        return text.count(f"{LINE}; stroke: {LINE}")  # a marker's fill and edge

    before = reseeded.path("report", "index.html").read_text(encoding="utf-8")
    report(reseeded)
    after = reseeded.path("report", "index.html").read_text(encoding="utf-8")
    assert after.count("<svg") == before.count("<svg")
    assert dots(after) > dots(before)


def test_a_seed_that_is_missing_is_named(reseeded: Study) -> None:
    shutil.rmtree(reseeded.path("seeds", f"{MODEL}-2"))
    with pytest.raises(Problem, match=r"seeds/tiny-glm4-2.* missing"):
        report(reseeded)
