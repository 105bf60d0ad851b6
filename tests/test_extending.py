"""One corpus, coder, score, chat format and stage more: each is one file or one entry, in a copy of the package, and the report
shows it by its name. Each is added to a finished run of one model and four test dialogs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from repository import ROOT
from scored import Page, make_scored
from tiny import untrained
from transformers import PreTrainedTokenizerFast

from mi_llm import registry
from mi_llm.engine.template import FORMATS
from mi_llm.report.page import report
from mi_llm.study import load

MODEL = "tiny-glm4"
SMALL = (
    ("  tiny-baichuan2: {chat_format: baichuan2, license: cc0-1.0}\n", ""),
    ("  tiny-llama3: {chat_format: llama3, license: cc0-1.0}\n", ""),
    ("    cpsycound: 54", "    cpsycound: 8"),
    ("    psydtcorpus: 18", "    psydtcorpus: 4"),
    ("  test_dialogs: 12", "  test_dialogs: 4"),
    ("  max_new_tokens: 96", "  max_new_tokens: 8"),
    ("  dialogs: 10", "  dialogs: 2"),
    ("  rounds: 10", "  rounds: 2"),
    ("  resamples: 10000", "  resamples: 200"),
    ("  epochs: 4", "  epochs: 1"),
)


def change(path: Path, *edits: tuple[str, str]) -> None:
    """Replace texts in a file; each must be there."""
    text = path.read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text, f"{path}: no {old!r}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A bundle with a copy of the package in it, and a reported run of one model on four test dialogs."""
    bundle = tmp_path_factory.mktemp("finished") / "bundle"
    for name in ("src", "data", "mini"):
        shutil.copytree(ROOT / name, bundle / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("docs", "CITATION.cff", "licenses.yaml"):
        (bundle / name).symlink_to(ROOT / name)
    change(bundle / "mini/params.yaml", *SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(bundle)
        study = load(Path("mini/params.yaml"))
        make_scored(study)
        report(study)
        untrained(Path("pretrain/models"), tokenizer)
    return bundle


@pytest.fixture
def bundle(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished bundle for one test to add to."""
    return Path(shutil.copytree(finished, tmp_path / "bundle", symlinks=True))


def python(bundle: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the bundle's own package."""
    environment = os.environ | {"PYTHONPATH": str(bundle / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=bundle, env=environment, capture_output=True, text=True, check=False)


def run(bundle: Path, *stages: str) -> Path:
    """Run some stages, as the command does, one after the other in one process; returns the folder of their outputs."""
    script = "import sys; from mi_llm.cli import app\nfor words in sys.argv[1:]: app(words.split(), standalone_mode=False)"
    done = python(bundle, "-c", script, *stages)
    assert done.returncode == 0, done.stdout + done.stderr
    return bundle / "runs/mini"


def cells(page: Path) -> list[str]:
    """The cells of all tables of a page."""
    return [cell for table in Page(page).tables for row in table for cell in row]


def test_a_corpus_is_a_reader(bundle: Path) -> None:
    (bundle / "src/mi_llm/corpora/sleep_talks.py").write_text(
        '''"""Sleep talks: JSON Lines of `[client, counselor]`."""

from mi_llm.corpora.reading import assemble, parse_lines
from mi_llm.language.language import Text

NAME = Text("Sleep talks", "睡眠谈话")


def read(files, repairs):
    for file in files:
        for number, where, entry in parse_lines(file, "a talk"):
            volleys = [("client", entry["client"], where), ("counselor", entry["counselor"], where)]
            yield from assemble(str(number), "sleep_talks", volleys, repairs, {"file": file.name})
''',
        encoding="utf-8",
    )
    talk = '{"client": "我总是半夜两点还醒着。", "counselor": "半夜两点还醒着，白天一定很累。"}\n'
    (bundle / "data/corpora/sleep_talks").mkdir()
    (bundle / "data/corpora/sleep_talks/talks.jsonl").write_text(talk * 2, encoding="utf-8")
    change(bundle / "mini/params.yaml", ("  annomi: {}\n", "  annomi: {}\n  sleep_talks: {}\n"))
    runs = run(bundle, "acquire sleep_talks", "read sleep_talks", "report")
    features = pd.read_csv(runs / "report/tables/dialog-features.csv").set_index("Dataset")
    assert features.loc["Sleep talks", "Dialogs"] == 2
    assert "睡眠谈话" in cells(runs / "report/index.zh.html")
    script = "from mi_llm.archive import left_out; print(left_out.table(left_out.corpora()))"
    left_out = python(bundle, "-c", script).stdout
    assert "no license is stated" in left_out
    assert "sleep_talks" not in left_out, "its files are in the bundle"


def test_a_coder_is_a_module(bundle: Path) -> None:
    (bundle / "src/mi_llm/miti/coder/marks.py").write_text(
        '''"""The question-mark coder: a volley with a question mark asks."""

from mi_llm.codebook.coding import Behavior, Text
from mi_llm.codebook.tables import Coding

NAME = Text("the question-mark coder", "问号编码程序")


def code(study, stage, transcripts):
    asks = frozenset({Behavior.QUESTION})
    return [
        Coding("marks", packet, {n: asks if "？" in turn.text else frozenset() for n, turn in enumerate(turns, 1)
                                 if turn.role == "counselor"}, {})
        for packet, turns in transcripts.items()
    ]
''',
        encoding="utf-8",
    )
    change(bundle / "mini/params.yaml", ("  coder: lexical", "  coder: marks"))
    runs = run(bundle, "code", "miti", "summary", "report")
    assert set(pd.read_csv(runs / "code/codes.csv")["rater"]) == {"marks"}
    assert "marks" in set(pd.read_csv(runs / "miti/coder_validation.csv")["coder"]), "every program is compared with experts"
    assert "the question-mark coder" in (runs / "report/index.html").read_text(encoding="utf-8")
    assert "问号编码程序" in (runs / "report/index.zh.html").read_text(encoding="utf-8")
    not_had = pd.read_csv(runs / "report/tables/not-had.csv")
    assert "Codes given by people" in set(not_had["What"]), "a program's codes are not a person's"


def test_a_score_is_an_entry(bundle: Path) -> None:
    entry = """FAMILIES = (
    Family(
        {"same_end": Text("Same ending", "结尾相同")},
        "ours|tok:char|mean",
        lambda replies, references: [
            {"same_end": 100.0 * (one[-1:] == other[-1:])} for one, other in zip(replies, references, strict=True)
        ],
    ),
"""
    change(bundle / "src/mi_llm/score/metrics.py", ("FAMILIES = (\n", entry))
    runs = run(bundle, "score", "report")
    assert set(pd.read_csv(runs / "score/samples.csv")["same_end"]) <= {0.0, 100.0}
    assert pd.read_csv(runs / "report/tables/other-scores.csv")["Same ending"].notna().all()  # too few dialogs for intervals
    assert {"Same ending", "ours|tok:char|mean"} <= set(cells(runs / "report/index.html"))
    assert "结尾相同" in cells(runs / "report/index.zh.html")


def test_a_chat_format_is_an_entry_with_its_template(bundle: Path) -> None:
    package = bundle / "src/mi_llm/engine"
    (package / "templates/plain.jinja").write_text(
        "{%- for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
        "{% endgeneration %}{% else %}<|user|>{{ message['content'] }}<|assistant|>{% endif %}{% endfor -%}",
        encoding="utf-8",
    )
    plain = 'FORMATS = {\n    "plain": ChatFormat("plain", "<|endoftext|>", ("<|endoftext|>", "<|user|>"), True),\n'
    change(package / "template.py", ("FORMATS = {", f"{plain}    **{{"), ("LLAMA3)}\n", "LLAMA3)},\n}\n"))
    change(bundle / "mini/params.yaml", (f"  {MODEL}: {{chat_format: glm4", f"  {MODEL}: {{chat_format: plain"))
    each = [f"{stage} {MODEL}" for stage in ("base", "finetune", "respond", "simulate")]
    runs = run(bundle, *each, "score", "report")
    assert "templates/plain.jinja" in (runs / "report/models.html").read_text(encoding="utf-8")
    lengths = pd.read_csv(runs / "report/tables/lengths.csv").set_index("Arm")
    assert lengths.loc[f"{MODEL} tuned", "Rounds, paper"] == "—", "the paper has no model of this format"


def test_a_stage_is_a_module_and_its_entries(bundle: Path) -> None:
    (bundle / "src/mi_llm/score/longest.py").write_text(
        '''"""Stage `longest`: the longest reply of each model."""

from mi_llm import storage
from mi_llm.stage import stage


def longest(study, model):
    replies = study.folder / "respond" / model / "tuned.jsonl"
    with stage(study, "longest", model, [replies]) as out:
        storage.write_json(out / "metrics.json", {"characters": max(len(row["text"]) for row in storage.read_lines(replies))})
''',
        encoding="utf-8",
    )
    what = "Find the longest reply of each model"
    change(bundle / "src/mi_llm/report/stages.csv", ("\nsimulate,", f"\nlongest,score,respond,,{what}\nsimulate,"))
    change(bundle / "mini/dvc.yaml", ("  simulate:\n", f"""  longest:
    foreach: ${{models}}
    do:
      desc: {what}
      wdir: ${{root}}
      cmd: mi-llm longest ${{key}} --study "${{params}}"
      deps: ["${{out}}/respond/${{key}}"]
      outs: ["${{out}}/longest/${{key}}"]

  simulate:
"""))  # fmt: skip
    runs = run(bundle, f"longest {MODEL}", "report")
    assert pd.read_json(runs / f"longest/{MODEL}/metrics.json", typ="series")["characters"] > 0
    assert pd.read_csv(runs / "report/tables/stages.csv").set_index("stage").loc["longest", "what"] == what


def test_the_chat_formats_are_the_templates() -> None:
    assert set(registry.chat_formats()) == {registry.CHECKPOINT, *FORMATS}
