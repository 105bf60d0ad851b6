"""The single tools through their commands, on files as people have them; numbers beside the libraries that define them."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import krippendorff
import pandas as pd
import pytest
from coding_server import coding
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from typer.testing import CliRunner

from mi_llm import storage
from mi_llm.cli import app
from mi_llm.codebook.coding import Global
from mi_llm.miti.code import code
from mi_llm.miti.summary import summary
from mi_llm.problem import Problem
from mi_llm.report import manual
from mi_llm.score.text import sample_scores
from mi_llm.statistics import DialogBootstrap, limit_of_none
from mi_llm.study import Study

REPLIES = ["听起来你想戒烟。", "你试过哪些办法？", "那你明天就该戒。"]
REFERENCES = ["你想戒烟，又怕坚持不住。", "你以前试过什么办法？", "你想从哪里开始？"]
ENGLISH = ["You are worried about drinking.", "What have you tried so far?"]
ENGLISH_REFERENCES = ["You worry about how much you drink.", "What did you try before?"]
SESSION = """来访者：我想戒烟，可是一到晚上就想抽。
咨询师：听起来你想戒烟，可一到晚上就想抽。晚上是什么让你想抽？
来访者：闲下来就想抽。
咨询师：嗯。
"""


def tool(*words: object) -> str:
    """What `mi-llm tool …` prints; a Problem is raised as such."""
    done = CliRunner().invoke(app, ["tool", *map(str, words)], catch_exceptions=False)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def means(printed: str) -> dict[str, float]:
    return {row["metric"]: row["mean"] for row in json.loads(printed)}


# ---- score


def test_replies_are_scored_the_same_from_text_json_lines_and_llamafactorys_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(REPLIES) + "\n", encoding="utf-8-sig")
    (tmp_path / "b.txt").write_text("\r\n".join(REFERENCES), encoding="utf-8")
    both = [{"prompt": "", "predict": reply, "label": reference} for reply, reference in zip(REPLIES, REFERENCES, strict=True)]
    predictions = lines(tmp_path / "generated_predictions.jsonl", *both)
    asked = lines(tmp_path / "rounds.jsonl", *({"id": str(n), "counselor": text} for n, text in enumerate(REFERENCES)))
    replies = lines(tmp_path / "replies.jsonl", *reversed([{"round": n, "text": text} for n, text in enumerate(REPLIES)]))

    from_text = tool("score", tmp_path / "a.txt", tmp_path / "b.txt", "--json")
    assert tool("score", predictions, "--json") == from_text
    assert tool("score", replies, asked, "--json") == from_text
    expected = [sample_scores(reply, reference)["bleu_4"] for reply, reference in zip(REPLIES, REFERENCES, strict=True)]
    assert means(from_text)["bleu_4"] == pytest.approx(sum(expected) / 3, abs=1e-4)
    assert [row["metric"] for row in csv.DictReader(io.StringIO(tool("score", predictions, "--csv")))] == [*means(from_text)]
    assert "3 replies; 95% intervals as if each were a dialog" in tool("score", predictions)


def test_english_is_scored_in_words_with_stems(tmp_path: Path) -> None:
    replies = lines(tmp_path / "replies.jsonl", *ENGLISH)
    scores = means(
        tool("score", replies, lines(tmp_path / "references.jsonl", *ENGLISH_REFERENCES), "--language", "en", "--json")
    )
    assert set(scores) == {"bleu_4", "rouge_1", "rouge_2", "rouge_l", "sacrebleu_13a", "chrf"}
    expected = BLEU(tokenize="13a").corpus_score(ENGLISH, [ENGLISH_REFERENCES]).score
    assert scores["sacrebleu_13a"] == pytest.approx(expected, abs=1e-4)
    sentences = [
        BLEU(tokenize="13a", effective_order=True).sentence_score(*pair).score
        for pair in zip(ENGLISH, [[text] for text in ENGLISH_REFERENCES], strict=True)
    ]
    assert scores["bleu_4"] == pytest.approx(sum(sentences) / len(sentences), abs=1e-4)
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    rows = [scorer.score(reference, reply) for reply, reference in zip(ENGLISH, ENGLISH_REFERENCES, strict=True)]
    assert scores["rouge_1"] == pytest.approx(50 * sum(row["rouge1"].fmeasure for row in rows), abs=1e-4)
    assert scores["rouge_l"] == pytest.approx(50 * sum(row["rougeL"].fmeasure for row in rows), abs=1e-4)
    assert rows[0]["rouge1"].fmeasure > 0.6, "worried and worry, drinking and drink are one word"


def test_intervals_are_over_dialogs_where_the_files_name_them(tmp_path: Path) -> None:
    texts = zip("abcdef", [*REPLIES, *REPLIES], [*REFERENCES, *reversed(REPLIES)], strict=True)
    rows = [{"dialog": name, "reply": reply, "reference": reference} for name, reply, reference in texts for _ in range(3)]
    scores = {row["metric"]: row for row in json.loads(tool("score", lines(tmp_path / "all.jsonl", *rows), "--json"))}
    values = [sample_scores(row["reply"], row["reference"])["rouge_1"] for row in rows]
    estimate = DialogBootstrap([row["dialog"] for row in rows], 2000, 0.95, 1).estimate(values).rounded()
    assert {name: scores["rouge_1"][name] for name in ("mean", "lo", "hi", "note")} == estimate | {"note": ""}
    assert scores["chrf"]["lo"] < scores["chrf"]["mean"] < scores["chrf"]["hi"]
    four = json.loads(tool("score", lines(tmp_path / "four.jsonl", *rows[:12]), "--json"))
    assert {(row["lo"], row["hi"], row["note"]) for row in four} == {(None, None, "no interval: fewer than 5 dialogs")}
    alike = lines(tmp_path / "alike.jsonl", *({"reply": "一", "reference": "一", "dialog": n} for n in range(6)))
    assert {row["note"] for row in json.loads(tool("score", alike, "--json"))} == {"no interval: the dialogs are too alike"}


@pytest.mark.parametrize(
    ("replies", "references", "told"),
    [
        ("一\n二\n", "一\n", "2 replies, and 1 references"),
        ("", "一\n", "empty"),
        ('{"predict": "一"}\n', None, "the keys predict"),
        ('{"answer": "一"}\n', "一\n", "one of predict, reply, text"),
        ('{"text": "一"}\n{"text": 3}\n', "一\n二\n", "entry 2: text: 3"),
        ('{"text": "一"}\n[1]\n', "一\n二\n", "line 2: a JSON list"),
        ('{"text": "一"\n', "一\n", "line 1: not JSON"),
        ('{"text": "一", "id": 1}\n', '{"text": "一", "id": 2}\n', "no reply to round 2"),
        ('{"text": "一", "id": 1}\n{"text": "二", "id": 1}\n', '{"text": "一", "id": 1}\n', "round 1 twice"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_place(tmp_path: Path, replies: str, references: str | None, told: str) -> None:
    names = [tmp_path / "replies"]
    names[0].write_text(replies, encoding="utf-8")
    if references is not None:
        names.append(tmp_path / "references")
        names[1].write_text(references, encoding="utf-8")
    with pytest.raises(Problem, match=told):
        tool("score", *names)


# ---- code


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    folder = tmp_path / "sessions"
    folder.mkdir()
    (folder / "a2.txt").write_text(SESSION, encoding="utf-8")
    turns = [{"role": "client", "content": "我该怎么办？"}, {"role": "counselor", "content": "你可以试试散步。"}]
    (folder / "a10.json").write_text(json.dumps(turns, ensure_ascii=False), encoding="utf-8")
    return folder


def test_transcripts_are_coded_by_words_alone(sessions: Path, tmp_path: Path) -> None:
    printed = tool("code", sessions, "--out", tmp_path / "coded")
    assert "2 transcripts, 0 repairs; coded by the lexical coder, which knows words and not meaning" in printed
    written = (tmp_path / "coded" / "codes.csv").read_text(encoding="utf-8")
    assert tool("code", sessions, "--csv") == written
    rows = list(csv.DictReader(io.StringIO(written)))
    assert {(row["packet"], row["volley"]) for row in rows} == {("a2", "2"), ("a2", "4"), ("a10", "2")}
    assert {row["code"] for row in rows if row["volley"] == "4"} == {""}, "nothing to code has an empty row"
    assert {"Q", "SR"} <= {row["code"] for row in rows if row["packet"] == "a2"}


def test_any_format_is_coded_and_equal_transcripts_stay_apart(tmp_path: Path) -> None:
    rows = ["id,speaker,text", *(f"{name},{who},好的。" for name in ("p1", "p2") for who in ("Kim", "Lee"))]
    (tmp_path / "talks.csv").write_text("\n".join(rows), encoding="utf-16")
    packet = {"packet": "p3", "turns": [{"role": role, "text": "好的。"} for role in ("client", "counselor")]}
    (tmp_path / "p3.json").write_text(json.dumps(packet), encoding="utf-8")
    (tmp_path / "raters.json").write_text('{"A": ["p3"]}', encoding="utf-8")
    with pytest.raises(Problem, match=r"(?s)the unknown speaker 'Kim'.*--speaker Kim=client"):
        tool("code", tmp_path)
    printed = tool("code", tmp_path, "--speaker", "Kim=client", "--speaker", "Lee=counselor", "--json")
    assert sorted(row["packet"] for row in json.loads(printed)) == ["p1", "p2", "p3"]


def test_transcripts_are_coded_by_a_model_at_an_address_once(workspace: Path, sessions: Path) -> None:
    with coding() as model:
        words = ("code", sessions, "--model-url", model.url, "--model", "some-model", "--out", "coded", "--yes", "--json")  # type: ignore[attr-defined]
        printed = tool(*words)
        asked = model.asked.total()
        assert tool(*words) == printed
        assert model.asked.total() == asked, "the cassette has the answers"
    codings = json.loads(printed)
    assert {row["rater"] for row in codings["codes"]} == {"llm:some-model"}
    assert {"Q", "SR"} <= {row["code"] for row in codings["codes"]}
    assert [row["rating"] for row in codings["globals"]] == [3] * 2 * len(Global)
    with pytest.raises(Problem, match="all three of them"):
        tool("code", sessions, "--model-url", "http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", "来访者：好的。\n咨询师：好。\n督导：停。\n", r"line 3: the unknown speaker '督导'"),
        ("a.json", "{", r"a\.json, line 1: not JSON"),
        ("a.jsonl", '{"id": "a", "turns": [{"role": "x", "text": "好"}]}', "the unknown speaker 'x'"),
        ("a.docx", "", "a damaged Office file"),
        ("a.png", "", "no transcript"),
    ],
)
def test_a_transcript_that_nobody_reads_is_refused_by_place(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(Problem, match=told):
        tool("code", tmp_path)


# ---- agree


def table(path: Path, header: str, *rows: str) -> Path:
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8-sig")
    return path


def test_codes_of_any_name_are_compared_by_code_and_as_names(tmp_path: Path) -> None:
    codes_by_rater = {"A": ["yes", "no", "yes", "maybe"], "B": ["yes", "no", "no", "maybe"]}
    rows = [f"{rater},p{n // 2},{n},{code},remark" for rater, codes in codes_by_rater.items() for n, code in enumerate(codes)]
    header = "rater,packet,volley,code,note"
    first, second = table(tmp_path / "A.csv", header, *rows[:4]), table(tmp_path / "B.csv", header, *rows[4:])
    agreement = pd.DataFrame(json.loads(tool("agree", first, second, "--json"))).set_index(["measure", "code"])["value"]
    numbers = [[["no", "yes", "maybe"].index(code) for code in codes] for codes in codes_by_rater.values()]
    expected = krippendorff.alpha(reliability_data=numbers, level_of_measurement="nominal")
    assert agreement["alpha", "which code"] == pytest.approx(expected, abs=1e-4)
    assert agreement["kappa", "which code"] == pytest.approx((3 / 4 - 5 / 16) / (1 - 5 / 16), abs=1e-4)
    assert agreement["kappa", "maybe"] == 1
    assert agreement["kappa", "yes"] == pytest.approx((3 / 4 - 1 / 2) / (1 - 1 / 2), abs=1e-4)
    assert "ICC(2,1)" in agreement.index.get_level_values(0)


def test_ratings_on_any_scale_are_ordinal(tmp_path: Path) -> None:
    ratings_by_rater = {"A": [0.5, 7, 10, 7], "B": [0.5, 7, 10, 10]}
    rows = [f"{rater},p{n},warmth,{value}" for rater, values in ratings_by_rater.items() for n, value in enumerate(values)]
    agreement = json.loads(tool("agree", table(tmp_path / "r.csv", "rater,packet,code,rating", *rows), "--json"))
    ranks = [[[0.5, 7, 10].index(value) for value in values] for values in ratings_by_rater.values()]
    expected = krippendorff.alpha(reliability_data=ranks, level_of_measurement="ordinal")
    (alpha,) = [row["value"] for row in agreement if row["measure"] == "alpha"]
    assert alpha == pytest.approx(expected, abs=1e-4)


def test_what_does_not_exist_says_why(tmp_path: Path) -> None:
    rows = [f"{rater},p,{n},yes" for rater in "AB" for n in range(3)]
    file = table(tmp_path / "codes.csv", "Rater, Packet,Volley,Code", *rows)
    agreement = json.loads(tool("agree", file, "--json"))
    (kappa,) = [row for row in agreement if (row["measure"], row["code"]) == ("kappa", "yes")]
    assert (kappa["value"], kappa["agreement"]) == (None, 1)
    assert kappa["note"] == "no value: both raters always gave the same single code"
    assert "no value: both raters always gave the same single code" in tool("agree", file)


def test_agreement_has_intervals_from_five_packets_on_and_says_why_there_is_none(tmp_path: Path) -> None:
    codes_by_rater = {"A": ["yes", "no", "yes", "no", "yes", "no"] * 2, "B": ["yes", "no", "no", "no", "yes", "yes"] * 2}

    def kappa(packets: int) -> dict[str, Any]:
        rows = [
            f"{rater},p{n // 2},{n},{code}"
            for rater in codes_by_rater
            for n, code in enumerate(codes_by_rater[rater])
            if n < 2 * packets
        ]
        agreement = json.loads(tool("agree", table(tmp_path / "codes.csv", "rater,packet,volley,code", *rows), "--json"))
        return dict(next(row for row in agreement if (row["measure"], row["code"]) == ("kappa", "which code")))

    assert [kappa(4)[name] for name in ("lo", "hi", "note")] == [None, None, "no interval: fewer than 5 transcripts"]
    assert kappa(6)["note"] == ""
    assert -1 <= kappa(6)["lo"] < kappa(6)["value"] < kappa(6)["hi"] <= 1


@pytest.mark.parametrize(
    ("header", "rows", "told"),
    [
        ("rater,packet,volley,code", ["A,p,1,yes", "A,p,2,no"], "raters A, none of whom"),
        ("rater,packet,volley", ["A,p,1"], "without code"),
        ("rater,packet,code,rating", ["A,p,warmth,high"], "row 2: the rating 'high'"),
        ("rater,packet,volley,code", ["A,,1,yes"], "row 2: no packet"),
    ],
)
def test_a_table_that_cannot_be_compared_is_refused(tmp_path: Path, header: str, rows: list[str], told: str) -> None:
    with pytest.raises(Problem, match=told):
        tool("agree", table(tmp_path / "codes.csv", header, *rows))


# ---- tables


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """Two raters of one packet who differ once and in one global, and one rater of another."""
    folder = tmp_path / "coded"
    folder.mkdir()
    codes = ["A,p1,2,CR", "A,p1,4,Q", "B,p1,2,SR", "B,p1,4,Q", "A,p2,2,Q", "A,p2,2,AF"]
    table(folder / "codes.csv", "rater,packet,volley,code", *codes)
    ratings = {("A", "p1"): 4, ("B", "p1"): 3, ("A", "p2"): 2}
    rows = [
        f"{rater},{packet},{code},{rating if code == 'EMP' else 3}"
        for (rater, packet), rating in ratings.items()
        for code in Global
    ]
    table(folder / "globals.csv", "rater,packet,code,rating", *rows)
    table(tmp_path / "key.csv", "packet,arm", "p1,before", "p2,after")
    return folder


def value(tables: dict[str, list[dict[str, Any]]], name: str, arm: str, indicator: str) -> Any:
    return next((row["mean"] for row in tables[name] if (row["arm"], row["indicator"]) == (arm, indicator)), None)


def test_table_6_of_any_arms_by_mean_and_by_consensus(coded: Path, tmp_path: Path) -> None:
    by_mean = {"Table 6": json.loads(tool("tables", coded, tmp_path / "key.csv", "--json"))}
    assert [value(by_mean, "Table 6", "before", code) for code in ("CR", "SR", "Q", "EMP", "CRR")] == [0.5, 0.5, 1, 3.5, 0.5]
    assert [value(by_mean, "Table 6", "after", code) for code in ("AF", "EMP", "ADH")] == [1, 2, 1]

    decided = table(coded / "consensus.csv", "packet,volley,code,rating,reason", "p1,2,CR,,adds a feeling")
    half = json.loads(tool("tables", coded, tmp_path / "key.csv", "--json"))
    assert value(half, "Table 6 by consensus", "before", "CR") is None, "a global is still open"
    assert value(half, "Table 6 by consensus", "after", "AF") == 1

    decided.write_text(decided.read_text(encoding="utf-8") + "p1,,EMP,4,close listening\n", encoding="utf-8")
    whole = json.loads(tool("tables", coded, tmp_path / "key.csv", "--json"))
    assert [value(whole, "Table 6 by consensus", "before", code) for code in ("CR", "SR", "EMP")] == [1, 0, 4]
    assert value(whole, "Table 6", "before", "CR") == 0.5


def test_table_6_has_intervals_from_five_transcripts_on_and_says_why_there_is_none(tmp_path: Path) -> None:
    counts = {"before": [0, 1, 1, 3], "after": [2, 2, 3, 4, 6, 1]}
    packets = [(f"{arm}{n}", arm, count) for arm, values in counts.items() for n, count in enumerate(values)]
    coded_rows = [
        f"A,{packet},{number},{'Q' if number <= count else ''}" for packet, _, count in packets for number in range(1, 7)
    ]
    codes = table(tmp_path / "codes.csv", "rater,packet,volley,code", *coded_rows)
    key = table(tmp_path / "key.csv", "packet,arm", *(f"{packet},{arm}" for packet, arm, _ in packets))
    made = {(row["arm"], row["indicator"]): row for row in json.loads(tool("tables", codes, key, "--json"))}
    few, enough, none, alike = (made[key] for key in (("before", "Q"), ("after", "Q"), ("after", "CR"), ("before", "CR")))
    assert (few["lo"], few["values"], few["note"]) == (None, "0.00; 1.00; 1.00; 3.00", "no interval: fewer than 5 transcripts")
    estimate = DialogBootstrap([str(n) for n in range(6)], 2000, 0.95, 1).estimate(counts["after"])
    assert (enough["lo"], enough["hi"], enough["note"]) == (round(estimate.lo, 4), round(estimate.hi, 4), "")
    assert (none["lo"], none["hi"]) == (0, round(limit_of_none(6, 0.95), 4)), "nothing counted has an exact limit"
    assert alike["note"] == "no interval: fewer than 5 transcripts"
    printed = tool("tables", codes, key)
    assert "1.25 (1.26) of 0.00; 1.00; 1.00; 3.00" in printed
    assert f"3.00 (1.79) [{estimate.lo:.2f}, {estimate.hi:.2f}]" in printed


def test_table_4_needs_the_transcripts(coded: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("p1", "p2"):
        (tmp_path / "texts" / f"{name}.txt").write_text(SESSION, encoding="utf-8")
    printed = tool("tables", coded, tmp_path / "key.csv", "--transcripts", tmp_path / "texts", "--json")
    rows = json.loads(printed)["Table 4"]
    assert [(row["arm"], row["n"], row["rounds_mean"], row["rounds_sd"]) for row in rows] == [
        ("before", 1, 2, None),
        ("after", 1, 2, None),
    ]
    assert "before, n = 1" in tool("tables", coded, tmp_path / "key.csv")


@pytest.mark.parametrize(
    ("header", "row", "told"),
    [("packet,group", "p1,a", "without arm"), ("packet,arm", "p9,a", "packets p9, …; coded are p1, p2")],
)
def test_a_key_that_does_not_fit_is_refused(coded: Path, tmp_path: Path, header: str, row: str, told: str) -> None:
    with pytest.raises(Problem, match=told):
        tool("tables", coded, table(tmp_path / "other.csv", header, row))


def test_other_codes_than_mitis_are_refused_with_the_remedy(tmp_path: Path, coded: Path) -> None:
    table(coded / "codes.csv", "rater,packet,volley,code", "A,p1,2,warm")
    with pytest.raises(Problem, match=r"(?s)the code 'warm'.*tool agree"):
        tool("tables", coded, tmp_path / "key.csv")


# ---- a study by consensus


def test_a_study_makes_table_6_by_consensus_too(study: Study, coded: Path) -> None:
    """The stages `code` and `summary` over two packets that people coded."""
    study = study.model_copy(update={"code": study.code.model_copy(update={"coder": "human", "human": str(coded)})})
    turns = [{"role": role, "text": "好的"} for role in ("client", "counselor", "client", "counselor")]
    blind = study.folder / "blind"
    for name, volleys in (("p1", turns), ("p2", turns[:2])):
        storage.write_json(blind / "packets" / f"{name}.json", {"packet": name, "turns": volleys})
    storage.write_text(
        blind / "key.csv", "packet,source,arm,dialog,profile,topic\np1,tiny-glm4,tuned,d,p,t\np2,annomi,real,e,,t\n"
    )
    table(coded / "consensus.csv", "packet,volley,code,rating,reason", "p1,2,CR,,why", "p1,,EMP,4,why")
    code(study)
    summary(study)
    made = {
        name: pd.read_csv(study.path("summary", f"{name}.csv")).set_index(["indicator", "arm"])["mean"]
        for name in ("table_6", "table_6_consensus")
    }
    assert (made["table_6"]["CR", "tuned"], made["table_6_consensus"]["CR", "tuned"]) == (0.5, 1)
    assert made["table_6_consensus"]["Q", "real"] == made["table_6"]["Q", "real"] == 1
    shown = manual.by_consensus(study)
    assert shown.loc["Complex reflections"].to_list() == ["1.00", "0.00"]
    (coded / "consensus.csv").unlink()
    code(study)
    summary(study)
    assert manual.by_consensus(study).empty
    assert not study.path("summary", "table_6_consensus.csv").exists()
