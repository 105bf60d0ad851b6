"""Studies in other languages run to the report: the English miniature, and a made-up language that is a copy of a folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from edits import edit
from repository import ROOT
from scored import Page
from tiny import untrained
from transformers import PreTrainedTokenizerFast

MODEL = "tiny-glm4"
SMALL = {
    "  tiny-llama3: {chat_format: llama3, license: cc0-1.0}\n": "",
    "health_talks: 10": "health_talks: 4",
    "test_dialogs: 3": "test_dialogs: 1",
    "max_new_tokens: 160": "max_new_tokens: 12",
    "  dialogs: 10": "  dialogs: 2",
    "  rounds: 10\n": "  rounds: 2\n",
    "  rounds: 4\n": "  rounds: 2\n",
    "resamples: 10000": "resamples: 200",
    "  epochs: 4": "  epochs: 1",
}
EVERY = (
    "digests",
    "acquire health_talks", "acquire annomi", "read health_talks", "read annomi", "rate", "transcribe", "screen", "translate",
    "split", f"base {MODEL}", f"finetune {MODEL}", f"respond {MODEL}", "score", f"simulate {MODEL}", f"safety {MODEL}", "blind",
    "code", "summary", "miti", "audit", "report",
)  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle with a copy of the package, and the English miniature with one model and four dialogs."""
    for name in ("src", "mini-en"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("data", "docs", "CITATION.cff", "licenses.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    edit(tmp_path / "mini-en/params.yaml", SMALL)
    return tmp_path


def python(bundle: Path, script: str, *words: str) -> str:
    """What a script says that runs with the bundle's own package."""
    places = f"{bundle / 'src'}{os.pathsep}{ROOT / 'tests/support'}"
    environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(page: Path) -> set[str]:
    """The cells of all tables of a page."""
    return {cell for table in Page(page).tables for row in table for cell in row}


@pytest.mark.slow
def test_the_english_miniature_runs_to_the_report(bundle: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    untrained(bundle / "pretrain/models", tokenizer)
    python(
        bundle,
        "import sys; from mi_llm.cli import app\n"
        "for words in sys.argv[1:]: app([*words.split(), '--study', 'mini-en/params.yaml'], standalone_mode=False)",
        *EVERY,
    )
    runs = bundle / "runs/mini-en"
    screening = pd.read_csv(runs / "screen/screening.csv", keep_default_na=False)
    assert (screening["decision"] == "keep").all()
    assert (screening["kinds"] == "").all(), "the shipped dialogs have no remark"
    scores = pd.read_csv(runs / "score/scores.csv").set_index("metric")
    assert set(scores.index) == {"bleu_4", "rouge_1", "rouge_2", "rouge_l", "sacrebleu_13a", "chrf"}
    assert scores.loc["rouge_1", "signature"].str.contains("default-porter").all()
    assert scores.loc["bleu_4", "signature"].str.contains(r"tok:13a.*level:sentence").all()
    assert set(pd.read_csv(runs / "miti/coder_validation.csv")["language"]) == {"en"}
    assert set(pd.read_csv(runs / f"safety/{MODEL}/validation.csv")["n"]) == {0}
    simulated = (runs / f"simulate/{MODEL}/base.jsonl").read_text(encoding="utf-8")
    assert "My sister thinks I drink too much" in simulated or "ganged up on me" in simulated or '"role": "client"' in simulated
    page = (runs / "report/index.html").read_text(encoding="utf-8")
    assert '<p lang="en"><span class="who">Client</span>' in page
    assert "as they are" in page
    assert "AnnoMI transcripts" in cells(runs / "report/index.html") | cells(runs / "report/data.html")
    assert "language: en" in (runs / f"finetune/{MODEL}/adapter/README.md").read_text(encoding="utf-8")
    pages = [runs / "report/index.html", runs / "report/rounds.html", runs / "report/safety.html"]
    assert not [path.name for path in pages if "来访者" in path.read_text(encoding="utf-8")]


@pytest.mark.slow
def test_a_third_language_is_a_copy_of_a_folder(bundle: Path) -> None:
    folder = bundle / "src/mi_llm/language/qx"
    shutil.copytree(bundle / "src/mi_llm/language/en", folder)
    edit(folder / "language.yaml", {
        "name: {en: English, zh: 英语}": "name: {en: Quux, zh: 奎语}", "tag: en": "tag: qx", "stemmer: porter": "stemmer: none",
        "client: [client, ": "client: [klient, ", "counselor: [counselor, ": "counselor: [konselor, ",
        "someone: someone": "someone: nomen",
    })  # fmt: skip
    edit(folder / "cues.yaml", {"    a, an, the, i, me,": "    qua, quo, qui,"})
    for path in (bundle / "mini-en/dialogs").iterdir():
        text = (
            path.read_text(encoding="utf-8")
            .replace("Client: ", "Klient: Qua quo, ")
            .replace("Counselor: ", "Konselor: Qui quo, ")
        )
        path.write_text(text, encoding="utf-8")
    named = "    speakers: {Client: client, Counselor: counselor}\n"
    edit(bundle / "mini-en/params.yaml", {"language: en\n": "language: qx\n", "language/en/": "language/qx/", named: ""})
    script = """from pathlib import Path
from scored import make_scored
from mi_llm.codebook.lexical import spoken
from mi_llm.report.page import report
from mi_llm.study import load
study = load(Path("mini-en/params.yaml"))
make_scored(study)
report(study)
print([spoken(text, "qx").language.code for text in ("Qua quo, it hurts.", "It hurts, and it is the way it is.", "我疼。")])
"""
    assert "['qx', 'en', 'zh']" in python(bundle, script)
    runs = bundle / "runs/mini-en"
    signatures = pd.read_csv(runs / "score/scores.csv").set_index("metric")["signature"]
    assert signatures["rouge_1"].str.contains("tok:words-none").all()
    assert "Klient" in (runs / "screen/dialogs.html").read_text(encoding="utf-8")
    assert "AnnoMI in Quux" in set(pd.read_csv(runs / "report/tables/not-had.csv")["What"]), "nobody has translated it"
    assert "AnnoMI 的奎语译文" in cells(runs / "report/index.zh.html")
    assert '<p lang="qx"><span class="who">Client</span>' in (runs / "report/index.html").read_text(encoding="utf-8")
