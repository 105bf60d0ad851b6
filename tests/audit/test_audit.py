"""The audit: methods against brute force and published examples, and verdicts that follow their input files."""

import csv
import itertools
import json
import math
import statistics
import zipfile
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from mi_llm import storage
from mi_llm.audit import codes
from mi_llm.audit.audit import METHODS, audit
from mi_llm.audit.verdict import VERDICTS, judged
from mi_llm.corpora import release
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.files import File, write_archive
from mi_llm.corpora.read import read
from mi_llm.dialog import Round, Turn
from mi_llm.miti.reliability import cohen, fleiss
from mi_llm.paper.claims import Claim, Printed, claims
from mi_llm.score.baselines import baselines
from mi_llm.study import Study, load

CLAIMS = ROOT.parent / "shared" / "paper" / "claims.csv"


def test_every_claim_has_a_method_and_every_method_a_description() -> None:
    paper = claims()
    assert len(paper) == 212
    assert {claim.method for claim in paper.values()} == set(METHODS)
    assert all(method.__doc__ for method in METHODS.values())


def test_the_claims_are_those_of_the_list() -> None:
    if not CLAIMS.exists():
        pytest.skip("no list of the paper's claims beside this repository")
    rows = list(csv.DictReader(CLAIMS.read_text(encoding="utf-8").splitlines()))
    paper = claims()
    assert [row["id"] for row in rows] == list(paper)
    for row in rows:
        assert (row["value"], row["sd"]) == (paper[row["id"]].reported, paper[row["id"]].reported_sd)


def test_printed_digits_decide() -> None:
    claim = Claim("x", "", "", "7.53", "4.12", "", "")
    assert judged(claim, 7.525, 4.123).verdict == "reproduced"
    assert judged(claim, 7.50, 4.123).verdict == "close"
    assert judged(claim, 9.175, 4.123).verdict == "differs"
    assert judged(Claim("x", "", "", "10", "", "", ""), 9).verdict == "differs"  # a count is exact or it is not


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=9, max_size=10), st.sampled_from([1, 2]))
def test_what_was_printed_from_real_codes_is_possible(ratings: list[int], raters: int) -> None:
    values = [rating / raters + (1 if raters == 2 else 0) for rating in ratings]
    mean, sd = (Printed.of(f"{number:.2f}") for number in (statistics.fmean(values), statistics.stdev(values)))
    assert codes.possible(mean, sd, len(values), raters, True) == (True, True)


@settings(max_examples=25, deadline=None)
@given(st.integers(100, 500), st.integers(0, 200))
def test_possible_agrees_with_all_data_sets(mean: int, sd: int) -> None:
    printed, deviation = Printed.of(f"{mean / 100:.2f}"), Printed.of(f"{sd / 100:.2f}")
    samples = [
        (statistics.fmean(values), statistics.stdev(values)) for values in itertools.combinations_with_replacement(range(1, 6), 7)
    ]
    means = any(printed.shows(possible_mean) for possible_mean, _ in samples)
    both = any(printed.shows(possible_mean) and deviation.shows(possible_sd) for possible_mean, possible_sd in samples)
    assert codes.possible(printed, deviation, 7, 1, True) == (means, both)


def test_grim_and_grimmer_on_published_cases() -> None:
    assert not codes.totals(Printed.of("5.19"), 28, 1)  # Brown and Heathers 2017: 5.19 cannot be a mean of 28 whole numbers
    assert codes.totals(Printed.of("5.18"), 28, 1)
    assert codes.possible(Printed.of("3.80"), Printed.of("0.67"), 10, 1, True) == (True, False)
    assert codes.possible(Printed.of("3.80"), Printed.of("0.42"), 10, 1, True) == (True, True)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=10, max_size=10))
def test_a_mean_of_ratios_lies_within_its_bounds(pairs: list[tuple[int, int]]) -> None:
    simple, complex_ = ([float(pair[index]) for pair in pairs] for index in (0, 1))
    ratios = [
        complex_count / (simple_count + complex_count) for simple_count, complex_count in zip(simple, complex_, strict=True)
    ]

    def printed(name: str, values: list[float]) -> Claim:
        return Claim(name, "", "", f"{statistics.fmean(values):.2f}", f"{statistics.stdev(values):.2f}", "10", "")

    paper = {f"T6-{row}-GLM": printed(row, values) for row, values in (("SR", simple), ("CR", complex_), ("CRR", ratios))}
    low, _, high = codes.ratio_bounds(paper, "CRR", "GLM")
    assert low - 0.005 <= statistics.fmean(ratios) <= high + 0.005


def test_kappas_give_published_values() -> None:
    fleiss_1971 = [  # Fleiss 1971, table 1 as counts of 14 raters' codes in Wikipedia's worked example: 0.210
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    items = [[code for code, count in enumerate(counts) for _ in range(count)] for counts in fleiss_1971]
    assert fleiss(items) == pytest.approx(0.210, abs=5e-4)
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen(first, second) == pytest.approx(0.4)
    assert math.isnan(cohen(["a", "a"], ["a", "a"]))


def test_baselines_are_what_they_say() -> None:
    history = (Turn(role="client", text="我睡不着。"), Turn(role="counselor", text="你最近睡得不好。"))
    rounds = [
        Round(id="a#1", dialog="a", number=1, history=(), client="我睡不着。", counselor="你最近睡得不好。"),
        Round(id="a#2", dialog="a", number=2, history=history, client="是的，很累。", counselor="你最近睡得不好。"),
        Round(id="b#1", dialog="b", number=1, history=(), client="我想戒烟。", counselor="戒烟对你很重要。"),
    ]
    table = baselines(rounds, 1).set_index("predictor")
    assert list(table.index) == ["echo_client", "constant", "previous_reply", "random_reference", "reference"]
    assert table.loc["reference", "bleu_4"] == 100
    assert table.loc["previous_reply", "rouge_1"] == pytest.approx(100 / 3, abs=1e-3)  # right in a#2, empty in round 1


# A release of two dialogs in the authors' formats, in our own words.
DIALOGS = [
    [
        ("client", "我想多运动。"),
        ("counselor", "你想多动。为什么？"),
        ("client", "医生说的。"),
        ("counselor", "你在意他的话。"),
    ],
    [("counselor", "你好，今天想聊什么？"), ("client", "我睡得很晚。"), ("counselor", "你常常睡得晚。"), ("client", "对。")],
]


def released(dialogs: list[list[tuple[str, str]]]) -> list[File]:
    conversations = [{"conversations": [{"role": role, "content": text} for role, text in dialog]} for dialog in dialogs]
    rounds = []
    for dialog in dialogs:
        texts = [text for _, text in dialog]
        for index in range(0, len(texts) - 1, 2):
            history = [[texts[before], texts[before + 1]] for before in range(0, index, 2)]
            rounds.append({"instruction": "二十年", "input": texts[index], "output": texts[index + 1], "history": history})
    return [
        File(release.DIALOGS, json.dumps(conversations, ensure_ascii=False).encode()),
        File(release.ROUNDS, json.dumps(rounds, ensure_ascii=False).encode()),
    ]


def workbook(dialogs: int) -> File:
    """A workbook of `dialogs` tuned ChatGLM-4 dialogs, with labels that stop early and a researcher's remark."""
    book = openpyxl.Workbook()
    book.active.title = release.OUTLINES
    book.active.append([None, *release.OUTLINE_COLUMNS])
    book.active.append([None, "缺乏运动", "久坐", "没有时间", "改变"])
    book.active.append([None, None, "少走路", "怕累", "不改变"])
    sheet = book.create_sheet("微调后对话GLM-4")
    sheet.append([None, *range(1, dialogs + 1)])
    for row, label in enumerate(["来访者", "咨询师", None, None, None]):
        text = ["我的运动量太少。", "你想多动一些。", "是的。", "那从哪里开始？", "(PS:就到这里)"][row]
        sheet.append([label, *([text] * dialogs if row < 4 else [text])])
    path = Path("book.xlsx")
    book.save(path)
    return File(release.SIMULATED, path.read_bytes())


def put(study: Study, corpus: str, files: list[File]) -> None:
    folder = study.folder / "acquire" / corpus
    write_archive(folder / "files.tar", files)
    storage.write_text(folder / "manifest.csv", "path,bytes,blob\n" + "x,0,x\n" * len(files))
    storage.write_text(folder / "missing.csv", "path,why,remedy\n")
    storage.write_json(folder / "metrics.json", {"files": len(files)})
    read(study, corpus)


@pytest.fixture
def public(workspace: Path) -> Study:
    """A study that takes only the release from upstream."""
    study = load(Path("released/params.yaml"))
    for corpus in ("cpsycound", "psydtcorpus"):
        acquire(study, corpus)
        read(study, corpus)
    return study


def rows(study: Study) -> dict[str, dict[str, str]]:
    with (study.folder / "audit/claims.csv").open(encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_verdicts_follow_the_input_files(public: Study) -> None:
    put(public, "release", [*released(DIALOGS * 20), workbook(10)])
    audit(public)
    before = rows(public)
    assert len(before) == 212
    assert {row["verdict"] for row in before.values()} <= set(VERDICTS)
    assert before["X-40"]["verdict"] == "reproduced"
    assert before["T4-glm-n"]["verdict"] == "reproduced"
    assert before["X-367"]["recomputed"] == "80"
    assert before["T3-CPsy-rounds"]["verdict"] == "not recomputable"  # the bundle's sample says nothing about the paper
    assert before["T5-sim-Increasing_exercise"]["recomputed"] == "0+10+0"
    page = (public.folder / "audit/index.html").read_text(encoding="utf-8")
    assert page.count('<tr id="') == 212
    again = {path.name: path.read_bytes() for path in (public.folder / "audit").iterdir()}
    audit(public)
    assert {path.name: path.read_bytes() for path in (public.folder / "audit").iterdir()} == again

    put(public, "release", [*released([*DIALOGS * 20, DIALOGS[0]]), workbook(9)])
    audit(public)
    after = rows(public)
    assert (after["X-40"]["verdict"], after["X-40"]["recomputed"]) == ("differs", "41")
    assert (after["T4-glm-n"]["verdict"], after["T4-glm-n"]["recomputed"]) == ("differs", "9")
    assert before["T3-test-counselor"]["recomputed"] != after["T3-test-counselor"]["recomputed"]


def test_the_miniature_checks_the_papers_arithmetic_alone(study: Study) -> None:
    for corpus in study.corpora:
        acquire(study, corpus)
        read(study, corpus)
    audit(study)
    verdicts = rows(study)
    assert verdicts["T6-SST-Baichuan"]["verdict"] == "inconsistent"
    assert verdicts["X-40"]["verdict"] == "not recomputable"
    missing = pd.read_csv(study.folder / "audit/missing.csv")
    assert set(missing["corpus"]) == {*study.corpora, "release"}


def test_shifted_samples_are_found_and_the_repaired_rounds_align(public: Study) -> None:
    put(public, "release", [*released(DIALOGS), workbook(1)])
    folder = public.folder / "read/release"
    table = pd.read_csv(folder / "alignment.csv", keep_default_na=False).set_index("round")
    assert table["status"].to_dict() == {
        "eval-1#1": "aligned", "eval-1#2": "aligned", "eval-2#1": "shifted", "eval-2#2": "shifted",
    }  # fmt: skip
    assert table.loc["eval-2#1", "reason"] == "the dialog opens with the counselor"
    aligned = [json.loads(line) for line in (folder / "aligned.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(sample["client"], sample["counselor"]) for sample in aligned if sample["dialog"] == "eval-2"] == [
        ("我睡得很晚。", "你常常睡得晚。")
    ]
    outlines = storage.read_json(folder / "outlines.json")
    assert [outline["behavior"] for outline in outlines] == ["缺乏运动", "缺乏运动"]
    repairs = (folder / "repairs.csv").read_text(encoding="utf-8")
    assert "researcher's remark left out,1" in repairs
    assert "unlabeled row given its speaker by position,3" in repairs


@pytest.mark.parametrize(
    ("records", "shape", "dialogs"),
    [
        (
            [{"conversations": [{"role": "client", "content": "甲"}, {"role": "counselor", "content": "乙"}]}] * 3,
            "conversations: 3",
            3,
        ),
        ([{"instruction": "", "input": "丙", "output": "丁", "history": [["甲", "乙"]]}] * 2, "2 records, one dialog each", 2),
        (
            [
                {"instruction": "", "input": "甲", "output": "乙", "history": []},
                {"instruction": "", "input": "丙", "output": "丁", "history": [["甲", "乙"]]},
                {"instruction": "", "input": "戊", "output": "己", "history": []},
            ],
            "3 records, one round each, from 2 dialogs",
            2,
        ),
    ],
)
def test_the_training_file_is_read_in_whichever_shape(records: list[object], shape: str, dialogs: int) -> None:
    from mi_llm.corpora.reading import Repairs

    file = File(release.TRAINING, json.dumps(records, ensure_ascii=False).encode())
    description, read_dialogs = release.read_training([file], Repairs())
    assert shape in description
    assert len(read_dialogs) == dialogs


def test_a_zip_bomb_in_office_clothes_is_refused(tmp_path: Path) -> None:
    from mi_llm.corpora.reading import Repairs
    from mi_llm.problem import Problem

    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", b"0" * (64 << 20))
    content = (tmp_path / "bomb.xlsx").read_bytes()
    with pytest.raises(Problem, match="of a sensible size"):
        release.read_simulated([File(release.SIMULATED, content)], Repairs())
    with pytest.raises(Problem, match="of a sensible size"):
        release.read_appendix([File(release.APPENDIX, content)])


def test_the_real_release_reproduces_tables_3_and_4(workspace: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MI_LLM_MIRROR", str(mirror))
    study = load(Path("released/params.yaml"))
    for corpus in study.corpora:
        acquire(study, corpus)
        read(study, corpus)
    audit(study)
    verdicts = rows(study)
    cells = [f"T4-{row}-{feature}" for row in ("glm", "lla") for feature in ("n", "rounds", "counselor", "client")]
    for name in ("T3-test-rounds", *cells):
        assert verdicts[name]["verdict"] == "reproduced", verdicts[name]
        assert (verdicts[name]["recomputed"], verdicts[name]["recomputed_sd"]) == (
            verdicts[name]["reported"],
            verdicts[name]["reported_sd"],
        )
    numbers = {
        role: (row["verdict"], row["recomputed"], row["recomputed_sd"])
        for role in ("counselor", "client")
        if (row := verdicts[f"T3-test-{role}"])
    }
    assert numbers == {"counselor": ("inconsistent", "56.42", "15.93"), "client": ("inconsistent", "29.21", "18.62")}
    assert "reproduces as the client's number, 29.21 (18.62)" in verdicts["T3-test-counselor"]["note"]
    assert verdicts["X-4asp"]["verdict"] == "reproduced"
    titles = [finding["en"]["title"] for finding in storage.read_json(study.folder / "audit" / "findings.json")]
    assert any("missing from the workbook" in title for title in titles), titles
    assert {verdicts[f"X-hp-{name}"]["verdict"] for name in ("learning_rate", "scheduler", "epochs", "precision")} == {
        "reproduced"
    }
