"""Report, doctor: from small results to a page."""

import csv
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from mi_llm import storage
from mi_llm.construct import rate, screen, split, transcribe, translate
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.read import read
from mi_llm.dialog import read_rounds, write_dialogs, write_rounds
from mi_llm.doctor import fitting, machine
from mi_llm.miti.blind import blind
from mi_llm.miti.coders import code
from mi_llm.miti.simulate import Counselor, converse
from mi_llm.miti.summary import summary
from mi_llm.miti.validation import miti
from mi_llm.problem import Problem
from mi_llm.report.page import report
from mi_llm.score.score import score
from mi_llm.study import Study, load

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs the scored miniature leaves it for the others."""
    return tmp_path_factory.mktemp("scored") / "runs"


@pytest.fixture
def scored(workspace: Path, study: Study, kept: Path) -> Study:
    """The miniature up to `score`: the tuned replies are the references, the base replies echo the client."""
    if not kept.exists():
        make_scored(study)
        shutil.copytree("runs", kept)
    shutil.copytree(kept, "runs", dirs_exist_ok=True)
    return study


def make_scored(study: Study) -> None:
    """Run the stages up to `score`, with made-up answers in the place of `finetune` and `respond`."""
    for corpus in study.corpora:
        acquire(study, corpus)
        read(study, corpus)
    for ask in (rate.rate, transcribe.transcribe, translate.translate):
        ask(study)
    screen.screen(study)
    split.split(study)
    rounds = read_rounds(study.folder / "split" / "test_rounds.jsonl")
    for model in study.models:
        folder = study.folder / "respond" / model
        for arm in ("base", "tuned"):
            rows = [
                {"round": r.id, "dialog": r.dialog, "text": r.client if arm == "base" else f"{r.counselor}<b>"} for r in rounds
            ]
            storage.write_lines(folder / f"{arm}.jsonl", rows)
        answers = {"base_tokens_mean": 9.0, "tuned_tokens_mean": 12.0, "base_cut_share": 0.0, "tuned_cut_share": 0.1}
        storage.write_json(folder / "metrics.json", answers)
        training = study.folder / "finetune" / model
        numbers = {"records": 60, "steps": 90, "trainable_parameters": 1000, "first_loss": 3.0, "last_loss": 2.0}
        storage.write_json(training / "metrics.json", numbers)
        storage.write_text(training / "dvclive/plots/metrics/loss.tsv", "step\tloss\n0\t3.0\n5\t2.0\n")
    for model in study.models:
        for arm, reply in (("base", "您应该早点休息。"), ("tuned", "听起来您很累，又放不下。您愿意先试哪一样？")):
            dialogs = converse(study, model, arm, always(reply), yes=False)
            write_dialogs(study.folder / "simulate" / model / f"{arm}.jsonl", dialogs)
    for stage in (blind, code, miti, summary):
        stage(study)
    score(study)


def always(reply: str) -> Counselor:
    """A counselor who says one thing."""
    return lambda rounds: [reply] * len(rounds)


class Links(HTMLParser):
    """Collects what a page refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.targets.append(value or "")
            elif name in ("src", "href") and tag in ("img", "script", "link", "iframe"):
                self.loads.append(value or "")
            elif name == "id":
                self.ids.add(value or "")


def test_scores_of_references_and_of_echoes(scored: Study) -> None:
    metrics = storage.read_json(scored.folder / "score" / "metrics.json")
    table = pd.read_csv(scored.folder / "score" / "samples.csv")
    rounds = len(read_rounds(scored.folder / "split" / "test_rounds.jsonl"))
    assert len(table) == rounds * len(scored.models) * 2
    for model in scored.models:
        assert metrics[model]["tuned"]["bleu_4"] > 90 > 20 > metrics[model]["base"]["bleu_4"] > 0
        rows = table[(table["model"] == model) & (table["arm"] == "base")]
        assert metrics[model]["base"]["rouge_l"] == pytest.approx(rows["rouge_l"].mean(), abs=1e-4)
    assert set(table["set"]) == {"test"}
    scores = pd.read_csv(scored.folder / "score" / "scores.csv")
    assert scores[["lo", "hi", "signature"]].notna().all().all()
    assert len(scores) == len(scored.models) * 2 * 9


def test_tuned_is_compared_with_base_and_with_other_tuned_models(scored: Study) -> None:
    paired = pd.read_csv(scored.folder / "score" / "paired.csv").set_index(["first", "second"])
    assert len(paired) == 4 * (3 + 3)
    gains = paired.loc[[(f"{model} tuned", f"{model} base") for model in scored.models]]
    assert (gains["lo"] > 0).all()
    assert gains["p"].tolist() == pytest.approx([2 / 2**12] * 12, abs=1e-6)  # 12 dialogs, all of one sign
    assert gains["p_holm"].tolist() == pytest.approx([24 * 2 / 2**12] * 12, abs=1e-6)
    assert (gains["superiority"] > 0.9).all()
    alike = paired.loc[[("tiny-baichuan2 tuned", "tiny-glm4 tuned")]]
    assert (alike[["mean", "lo", "hi"]] == 0).all().all()
    assert (alike[["p", "p_holm"]] == 1).all().all()
    assert alike["d"].isna().all()
    assert (alike["superiority"] == 0.5).all()


def test_baselines_and_diagnostics_stand_beside_the_scores(scored: Study) -> None:
    lines = pd.read_csv(scored.folder / "score" / "baselines.csv").set_index("predictor")
    metrics = storage.read_json(scored.folder / "score" / "metrics.json")
    assert lines.loc["reference", "rouge_l"] == 100
    assert lines.loc["echo_client", "bleu_4"] == pytest.approx(metrics["tiny-glm4"]["base"]["bleu_4"], abs=1e-4)
    found = pd.read_csv(scored.folder / "score" / "diagnostics.csv").set_index(["model", "arm"])
    assert len(found) == 2 * len(scored.models) + 1
    longer = found.loc[("tiny-glm4", "tuned"), "characters_mean"] - found.loc[("reference", "reference"), "characters_mean"]
    assert longer == pytest.approx(len("<b>"), abs=1e-3)
    assert (found["empty"] == 0).all()


@pytest.fixture
def repaired(scored: Study) -> Study:
    """The same with a repaired test set beside: without the first round, and with another reference to the second."""
    _, second, *rest = read_rounds(scored.folder / "split" / "test_rounds.jsonl")
    changed = second.model_copy(update={"id": f"{second.id} aligned", "counselor": "完全不同的一句话。"})
    write_rounds(scored.folder / "split" / "aligned_rounds.jsonl", [changed, *rest])
    for model in scored.models:
        for arm in ("base", "tuned"):
            path = scored.folder / "respond" / model / f"{arm}.jsonl"
            answer = {"round": changed.id, "dialog": changed.dialog, "text": "完全不同的一句话。"}
            storage.write_lines(path, [*storage.read_lines(path), answer])
    score(scored)
    return scored


def test_both_test_sets_are_scored_and_shown(repaired: Study) -> None:
    samples = pd.read_csv(repaired.folder / "score" / "samples.csv")
    assert samples.groupby("set").size().to_dict() == {"published": 121 * 6, "aligned": 120 * 6}
    changed = samples[samples["round"].str.endswith(" aligned")]
    assert changed["bleu_4"].tolist() == [100.0] * 6
    metrics = storage.read_json(repaired.folder / "score" / "metrics.json")
    assert set(metrics) == {*repaired.models, "aligned"}
    rows = samples[(samples["set"] == "aligned") & (samples["model"] == "tiny-glm4") & (samples["arm"] == "base")]
    assert metrics["aligned"]["tiny-glm4"]["base"]["rouge_1"] == pytest.approx(rows["rouge_1"].mean(), abs=1e-4)
    for name in ("scores", "paired", "baselines", "diagnostics"):
        assert set(pd.read_csv(repaired.folder / "score" / f"{name}.csv")["set"]) == {"published", "aligned"}
    report(repaired)
    page = (repaired.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5
    assert "<th>Test set</th>" in page
    rounds = (repaired.folder / "report" / "rounds.html").read_text(encoding="utf-8")
    assert rounds.count("<article") == 241
    assert '<option value="aligned">repaired</option>' in rounds


def test_a_missing_answer_is_named(scored: Study) -> None:
    path = scored.folder / "respond" / "tiny-glm4" / "tuned.jsonl"
    first, *rest = storage.read_lines(path)
    storage.write_lines(path, rest)
    with pytest.raises(Problem, match=f"no answer to round {first['round']}"):
        score(scored)


def test_the_page_is_self_contained_and_its_links_lead_somewhere(scored: Study) -> None:
    report(scored)
    out = scored.folder / "report"
    page = (out / "index.html").read_text(encoding="utf-8")
    links = Links(page)
    assert links.loads == []
    for target in links.targets:
        if target.startswith("#"):
            assert target[1:] in links.ids
        elif not target.startswith("https://"):
            path, _, place = target.partition("#")
            assert (out / path).is_file(), target
            assert not place or place in Links((out / path).read_text(encoding="utf-8")).ids
    assert "numbers are not the paper" in page.split("<h2", 1)[0]
    assert page.count("<svg") == 4
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_the_page_of_rounds_shows_everything_and_loads_nothing(scored: Study) -> None:
    report(scored)
    page = (scored.folder / "report" / "rounds.html").read_text(encoding="utf-8")
    links = Links(page)
    assert links.loads == []
    assert {target for target in links.targets if not target.startswith("#")} == {"index.html"}
    assert {target[1:] for target in links.targets if target.startswith("#")} <= links.ids
    assert "default-src 'none'" in page
    rounds = read_rounds(scored.folder / "split" / "test_rounds.jsonl")
    assert page.count("<article") == len(rounds)
    for sample in rounds:
        assert page.count(f">{sample.counselor}&lt;b&gt;<p") == len(scored.models)  # the tuned replies, escaped
        assert f">{sample.client}<p" in page
    samples = pd.read_csv(scored.folder / "score" / "samples.csv").set_index(["round", "model", "arm"])
    first = rounds[0].id
    gains = [float(number) for number in re.findall(r'data-gains="([^"]*)"', page)[0].split()]
    assert len(gains) == 4 * len(scored.models)
    base, tuned = (samples.loc[(first, "tiny-baichuan2", arm), "bleu_4"] for arm in ("base", "tuned"))
    assert gains[0] == pytest.approx(tuned - base)


def test_the_page_says_how_rounds_were_answered(scored: Study) -> None:
    assert scored.respond.decoding == "greedy"
    report(scored)
    assert "answered greedily" in (scored.folder / "report" / "index.html").read_text(encoding="utf-8")
    report(scored.model_copy(update={"respond": scored.respond.model_copy(update={"decoding": "sample"})}))
    page = (scored.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "answered by sampling (temperature 0.95, top-k 50, top-p 0.7, each round with a seed of its own)" in page


def test_the_manual_evaluation_names_its_coder_and_the_papers_numbers(scored: Study) -> None:
    report(scored)
    page = (scored.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "Coder: the lexical coder (automatic: it knows words, not meaning)." in page
    indicators = pd.read_csv(scored.folder / "report/tables/indicators.csv").set_index("Indicator")
    assert indicators.loc["Asking questions", "tiny-glm4 tuned, paper"] == "14.20 (5.15)"
    assert indicators.loc["Asking questions", "real (AnnoMI), paper"] == "13.43 (11.68)"
    assert indicators.loc["Empathy", "tiny-glm4 tuned"] == "—"  # words give no globals
    assert "tiny-glm4 base, paper" not in indicators
    assert indicators.loc["Persuading", "tiny-glm4 base"] != indicators.loc["Persuading", "tiny-glm4 tuned"]
    lengths = pd.read_csv(scored.folder / "report/tables/lengths.csv").set_index("Arm")
    assert lengths.loc["tiny-llama3 tuned", "Rounds, paper"] == "18.90 (5.80)"


def test_without_recorded_ratings_the_page_says_so(scored: Study) -> None:
    for name in ("rate", "translate"):
        (scored.folder / name / "cassette.jsonl").unlink()
    (Path("data")).unlink()
    rate.rate(scored)
    translate.translate(scored)
    report(scored)
    page = (scored.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert "No ratings are recorded for this study" in page
    assert "mi-llm rate --study mini/params.yaml --mode record" in page


def test_every_table_of_the_page_is_a_csv_file(scored: Study) -> None:
    report(scored)
    out = scored.folder / "report"
    assert (
        len(list((out / "tables").glob("*.csv"))) == (out / "index.html").read_text(encoding="utf-8").count("<table") + 1
    )  # the loss is a figure
    with (out / "tables" / "dialog-features.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["Dataset"] for row in rows][:2] == ["CPsyCounD", "PsyDTCorpus"]
    assert re.fullmatch(r"\d+\.\d\d \(\d+\.\d\d\)", rows[0]["Dialog rounds, mean (SD)"])


def written(study: Study) -> list[bytes]:
    """Write the report, and read its files."""
    report(study)
    return [path.read_bytes() for path in sorted((study.folder / "report").rglob("*")) if path.is_file()]


def test_the_report_has_the_same_bytes_twice(scored: Study) -> None:
    assert written(scored) == written(scored)


def test_a_stage_that_the_report_does_not_wait_for_does_not_change_it(scored: Study) -> None:
    before = written(scored)
    storage.write_json(scored.folder / "audit" / "provenance.json", {"stage": "audit", "versions": {"pandas": "0"}})
    assert written(scored) == before


def test_doctor_says_what_is_missing_for_which_study() -> None:
    command = [str(Path(sys.executable).parent / "mi-llm"), "doctor"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout
    assert "study mini: can run here" in shown.stdout
    assert "study paper: cannot run here" in shown.stdout
    poor = machine().__class__(**{**vars(machine()), "disk": 0.5, "mirror": None})
    assert any("0.5 GB of disk are free, 3 are needed" in line for line in fitting(load(ROOT / "mini/params.yaml"), poor))
    assert any("MI_LLM_MIRROR" in line for line in fitting(load(ROOT / "released/params.yaml"), poor))


def test_unknown_studies_and_options_are_refused_in_words() -> None:
    for words, said in ((["nonsense"], "no such study"), (["--fast"], "unknown option --fast"), (["--mirror"], "needs a folder")):
        shown = subprocess.run(["./reproduce.sh", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert shown.returncode == 2
        assert said in shown.stderr
        assert "Traceback" not in shown.stderr
