"""Report, comparison, doctor: from small results to a page, and from two runs to a verdict."""

import csv
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from mi_llm import storage
from mi_llm.compare import deviations, judge, outputs
from mi_llm.construct import rate, screen, split, transcribe, translate
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.read import read
from mi_llm.dialog import read_rounds
from mi_llm.doctor import fitting, machine
from mi_llm.report.page import report
from mi_llm.score.score import score
from mi_llm.study import Study, load

ROOT = Path(__file__).parent.parent


@pytest.fixture
def scored(workspace: Path, study: Study) -> Study:
    """The miniature up to `score`: the tuned replies are the references, the base replies echo the client."""
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
    score(study)
    return study


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
    paired = pd.read_csv(scored.folder / "score" / "paired.csv")
    assert (paired["lo"] > 0).all()
    assert (paired["lo"] < paired["mean"]).all()
    assert pd.read_csv(scored.folder / "score" / "scores.csv")["signature"].notna().all()


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
            assert (out / target).is_file(), target
    assert "numbers are not the paper" in page.split("<h2", 1)[0]
    assert page.count("<svg") == 3
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_without_recorded_ratings_the_page_says_so(scored: Study) -> None:
    for name in ("rate", "translate"):
        (scored.folder / name / "cassette.jsonl").unlink()
    (Path("data")).unlink()
    rate.rate(scored)
    translate.translate(scored)
    report(scored)
    page = (scored.folder / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
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


def test_numbers_within_tolerance(study: Study) -> None:
    tolerance = study.compare
    wanted = {"tiny": {"bleu_4": 4.0, "rounds": 121}, "name": "x"}
    assert deviations({"tiny": {"bleu_4": 4.4, "rounds": 121}, "name": "x"}, wanted, tolerance) == []
    assert deviations({"tiny": {"bleu_4": 4.6, "rounds": 121}, "name": "x"}, wanted, tolerance) == ["tiny.bleu_4 is 4.6, was 4.0"]
    assert deviations({"tiny": {"bleu_4": 4.0}, "name": "x"}, wanted, tolerance) != []


def test_only_floating_point_stages_may_differ_in_their_files(workspace: Path, study: Study) -> None:
    out = Path("runs/mini/split")
    storage.write_json(out / "metrics.json", {"rounds": 1})
    storage.write_text(out / "train.jsonl", "changed")
    before = {str(out): {"files": {"metrics.json": "x", "train.jsonl": "y"}, "metrics": {"rounds": 1}}}
    assert judge(study, "split", str(out), before) == ["train.jsonl differs"]
    assert judge(study, "score", str(out), before) == []
    assert judge(study, "score", "runs/mini/elsewhere", before) == ["no reference for it in mini/reference.json"]


def test_the_committed_reference_belongs_to_the_committed_lock() -> None:
    reference = storage.read_json(ROOT / "mini" / "reference.json")
    wanted = outputs(storage.read_text(ROOT / "mini" / "dvc.lock"))
    assert set(reference) == set(wanted)
    for path, facts in reference.items():
        listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(facts["files"].items())]
        whole = hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
        assert wanted[path][1] == f"{whole}.dir", path


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
