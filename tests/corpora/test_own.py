"""Your own dialogs: every format that people have is read as the same talk; faults are repaired and counted, or refused."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from repository import ROOT

from mi_llm.corpora.files import File
from mi_llm.corpora.own.encoding import decoded
from mi_llm.corpora.own.speakers import contradiction
from mi_llm.corpora.own.understand import Understood, files_of, read_transcripts, understand
from mi_llm.corpora.reading import Repairs
from mi_llm.problem import Problem
from mi_llm.study import Corpus

CASES = ROOT.parent / "shared" / "cases" / "corpora"
TALK = [
    ("client", "我最近总睡不着，医生说：“少喝咖啡。”"),
    ("counselor", "睡不好让您很累。您愿意多说一点吗？"),
    ("client", "我一躺下就想工作。"),
    ("counselor", "工作跟着您上了床。什么时候您睡得好一些？"),
]
ENGLISH = [
    ("client", "I know I should quit, but I can't see myself without it."),
    ("counselor", "Part of you wants to stop, and part of you would miss it. What would you miss most?"),
    ("client", "The breaks with my friends, I guess."),
    ("counselor", "Your friends matter to you. How could you keep that?"),
]
KEYS = ("client", "counselor")


def read(*files: File, **settings: Any) -> Understood:
    return understand(files, "talks", Corpus.model_validate({"path": "x"} | settings), Repairs())


def text(name: str, content: str, encoding: str = "utf-8") -> File:
    return File(name, content.encode(encoding))


def data(name: str, content: object) -> File:
    return text(name, json.dumps(content, ensure_ascii=False))


def lines(name: str, *records: object) -> File:
    return text(name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def talks(understood: Understood) -> list[list[tuple[str, str]]]:
    return [[(turn.role, turn.text) for turn in dialog.turns] for dialog in understood.dialogs]


def labels(client: str, counselor: str, form: str = "{}：{}\n", talk: list[tuple[str, str]] = TALK) -> str:
    names = {"client": client, "counselor": counselor}
    return "".join(form.format(names[role], spoken) for role, spoken in talk)


def turns(who: str, what: str, client: str, counselor: str) -> list[dict[str, str]]:
    return [{who: client if role == "client" else counselor, what: spoken} for role, spoken in TALK]


PAIRS = [(TALK[0][1], TALK[1][1]), (TALK[2][1], TALK[3][1])]
SHAREGPT = turns("from", "value", "human", "gpt")
OPENAI = turns("role", "content", "user", "assistant")
PROMPT = "你是一位心理咨询师。"
ALPACA = [
    {"instruction": PROMPT, "input": PAIRS[0][0], "output": PAIRS[0][1], "history": []},
    {"instruction": PROMPT, "input": PAIRS[1][0], "output": PAIRS[1][1], "history": [list(PAIRS[0])]},
]
ROWS = [("7", str(number), "来访者" if role == "client" else "咨询师", spoken) for number, (role, spoken) in enumerate(TALK, 1)]


def table(*rows: tuple[str, ...], mark: str = ",") -> str:
    return "\r\n".join(mark.join(f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row) for row in rows)


def workbook(**sheets: list[tuple[str, ...]]) -> bytes:
    book, content = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(content)
    return content.getvalue()


def paragraphs(*texts: str, cells: list[tuple[str, ...]] | None = None) -> bytes:
    document, content = docx.Document(), io.BytesIO()
    for paragraph in texts:
        document.add_paragraph(paragraph)
    if cells:
        inside = document.add_table(len(cells), len(cells[0]))
        for row, values in zip(inside.rows, cells, strict=True):
            for cell, value in zip(row.cells, values, strict=True):
                cell.text = value
    document.save(content)
    return content.getvalue()


SRT = "".join(
    f"{number}\n00:00:{number:02},000 --> 00:00:{number + 1:02},000\n{label}：{spoken}\n\n"
    for number, (label, spoken) in enumerate(((row[2], row[3]) for row in ROWS), 1)
)
VTT = "WEBVTT\n\n" + "".join(
    f"00:{number:02}.000 --> 00:{number + 1:02}.000\n<v {row[2]}>{row[3]}\n\n" for number, row in enumerate(ROWS)
)

FORMATS: Mapping[str, File] = {
    "ShareGPT": data("a.json", [{"id": "7", "conversations": [{"from": "system", "value": PROMPT}, *SHAREGPT]}]),
    "OpenAI": lines("a.jsonl", {"messages": [{"role": "system", "content": PROMPT}, *OPENAI]}),
    "OpenAI in parts": lines(
        "a.jsonl",
        {"messages": [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in OPENAI]},
    ),
    "a call of a tool": lines(
        "a.jsonl",
        {
            "messages": [
                *OPENAI[:1],
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "content": "{}"},
                *OPENAI[1:],
            ]
        },
    ),
    "Alpaca by round": data("a.json", ALPACA),
    "Alpaca, the last round": data("a.json", ALPACA[1:]),
    "Alpaca without input": data(
        "a.json", [{"instruction": PAIRS[1][0], "input": "", "output": PAIRS[1][1], "history": [list(PAIRS[0])]}]
    ),
    "query and response": lines("a.jsonl", {"query": PAIRS[1][0], "response": PAIRS[1][1], "history": [list(PAIRS[0])]}),
    "xtuner": data(
        "a.json",
        [
            {
                "conversation": [
                    {"system": PROMPT, "input": PAIRS[0][0], "output": PAIRS[0][1]},
                    {"input": PAIRS[1][0], "output": PAIRS[1][1]},
                ]
            }
        ],
    ),
    "one dialog, a list of turns": data("a.json", turns("role", "content", "client", "counselor")),
    "JSON Lines of turns": lines("a.jsonl", *turns("speaker", "text", "Client", "Therapist")),
    "rows in JSON": data("a.json", [{"dialog_id": 7, "turn": int(n), "speaker": who, "text": what} for _, n, who, what in ROWS]),
    "below one key": data("a.json", {"version": 1, "data": [{"conversations": SHAREGPT}]}),
    "by id": data("a.json", {"7": {"messages": OPENAI}}),
    "by id, lists": data("a.json", {"7": OPENAI}),
    "turns under the speakers' names": data("a.json", [{"dialog": [{row[2]: row[3]} for row in ROWS]}]),
    "rounds with one id": lines("a.jsonl", *({"id": 7, "input": asked, "output": answer} for asked, answer in PAIRS)),
    "JSON that is called text": data("a.txt", {"messages": OPENAI}),
    "JSON Lines that are called JSON": lines("a.json", {"messages": OPENAI}),
    "JSON Lines that are called CSV": lines("a.csv", {"messages": OPENAI}),
    "JSON with a mark": File("a.json", b"\xef\xbb\xbf" + data("a.json", {"messages": OPENAI}).content),
    "growing samples": lines("a.jsonl", {"messages": OPENAI[:2]}, {"messages": OPENAI}),
    "CSV": text("a.csv", table(("dialog_id", "turn", "speaker", "text"), *ROWS)),
    "TSV with Chinese headings": text("a.tsv", table(("对话编号", "轮次", "说话人", "内容"), *ROWS, mark="\t")),
    "semicolons": text("a.csv", table(("Nr", "who", "utterance"), *(row[1:] for row in ROWS), mark=";")),
    "UTF-16 as Excel writes it": text("a.csv", table(("session", "speaker", "text"), *((r[0], *r[2:]) for r in ROWS)), "utf-16"),
    "no headings": text("a.csv", table(*ROWS)),
    "a title above": text("a.csv", table(("睡眠", "", "", ""), ("对话", "序号", "角色", "文本"), *ROWS)),
    "unordered": text("a.csv", table(("dialog_id", "turn", "speaker", "text"), *reversed(ROWS))),
    "empty ids": text("a.csv", table(("id", "role", "content"), *(("7" if n == "1" else "", *rest) for _, n, *rest in ROWS))),
    "a column for each role": text("a.csv", table(("来访者", "咨询师"), *PAIRS)),
    "a dialog in a cell": text("a.csv", table(("id", "text"), ("7", labels("来访者", "咨询师")))),
    "Excel": File("a.xlsx", workbook(talks=[("dialog_id", "turn", "speaker", "text"), *ROWS])),
    "Excel, one of two sheets": File(
        "a.xlsx", workbook(notes=[("remark",), ("x",)], talks=[("speaker", "text"), *(r[2:] for r in ROWS)])
    ),
    "text": text("a.txt", labels("来访者", "咨询师")),
    "half-width colons": text("a.txt", labels("来访者", "咨询师", "{}: {}\n")),
    "Windows": text("a.txt", labels("来访者", "咨询师").replace("\n", "\r\n")),
    "UTF-16": text("a.txt", labels("来访者", "咨询师"), "utf-16"),
    "UTF-16 without mark": text("a.txt", labels("来访者", "咨询师"), "utf-16-le"),
    "GBK": text("a.txt", labels("来访者", "咨询师"), "gbk"),
    "English labels": text("a.txt", labels("Client", "Therapist", "{}: {}\n")),
    "counsellor": text("a.txt", labels("CLIENT", "COUNSEL" + "LOR", "{}: {}\n")),
    "letters": text("a.txt", labels("C", "T")),
    "letters with numbers": text(
        "a.txt", "".join(f"{'C' if r == 'client' else 'T'}{n // 2 + 1}: {s}\n" for n, (r, s) in enumerate(TALK))
    ),
    "nobody knows them": text("a.txt", labels("A", "B")),
    "names": text("a.txt", labels("小红", "李咨询师")),
    "in brackets": text("a.txt", labels("来访者", "咨询师", "【{}】{}\n")),
    "in square brackets": text("a.txt", labels("Client", "Counselor", "[{}] {}\n")),
    "Markdown": text("a.md", labels("来访者", "咨询师", "**{}：** {}\n\n")),
    "numbered": text("a.txt", "".join(f"{n}. {row[2]}：{row[3]}\n" for n, row in enumerate(ROWS, 1))),
    "tabs": text("a.txt", labels("来访者", "咨询师", "{}\t{}\n")),
    "labels on lines of their own": text("a.txt", labels("来访者", "咨询师", "{}\n{}\n")),
    "times above": text(
        "a.txt", "".join(f"说话人{1 if r == 'client' else 2} 00:{n:02}\n{s}\n\n" for n, (r, s) in enumerate(TALK))
    ),
    "times before": text("a.txt", "".join(f"[00:00:{n:02}] {row[2]}：{row[3]}\n" for n, row in enumerate(ROWS))),
    "times without brackets": text("a.txt", "".join(f"00:00:{n:02} {row[2]}: {row[3]}\n" for n, row in enumerate(ROWS))),
    "spans": text("a.txt", "".join(f"(00:{n:02} - 00:{n + 1:02}) {row[2]}：{row[3]}\n" for n, row in enumerate(ROWS))),
    "times behind the label": text("a.txt", "".join(f"{row[2]} [00:{n:02}]：{row[3]}\n" for n, row in enumerate(ROWS))),
    "a header": text(
        "a.txt", "咨询记录\n日期：2024-05-01\n来访者：小红\n咨询师：李老师\n时长：50分钟\n\n" + labels("来访者", "咨询师")
    ),
    "one heading": text("a.txt", "第3次会谈\n\n" + labels("来访者", "咨询师")),
    "qualified": text("a.txt", labels("来访者（女）", "咨询师")),
    "SRT": text("a.srt", SRT),
    "WebVTT with voices": text("a.vtt", VTT),
    "Word": File("a.docx", paragraphs(*(f"{row[2]}：{row[3]}" for row in ROWS))),
    "Word, a table": File("a.docx", paragraphs("记录", cells=[("说话人", "内容"), *(row[2:] for row in ROWS)])),
    "Word, a table without headings": File("a.docx", paragraphs("记录", cells=[row[2:] for row in ROWS])),
    "speech that begins a line like a label": text("a.txt", labels("来访者", "咨询师").replace("医生说：", "\n医生说：")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_the_same_talk(name: str) -> None:
    understood = read(FORMATS[name])
    (dialog,) = talks(understood)
    assert [(role, spoken.replace("\n", "")) for role, spoken in dialog] == TALK
    assert contradiction(understood.speakers) is None


@pytest.mark.parametrize("name", ["ShareGPT", "Excel", "GBK", "SRT", "Word"])
def test_formats_are_read_without_a_study_too(name: str, tmp_path: Path) -> None:
    path = tmp_path / FORMATS[name].name
    path.write_bytes(FORMATS[name].content)
    (dialog,), _ = read_transcripts(path)
    assert [(turn.role, turn.text) for turn in dialog.turns] == TALK


def test_of_transcripts_times_are_left_out_and_stage_directions_stay(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("[00:12] 来访者：我（笑）不行。\n咨询师：您[00:15]愿意吗？", encoding="utf-8")
    (tmp_path / "b.txt").write_text("来访者：我（笑）不行。", encoding="utf-8")  # as the other begins
    dialogs, repairs = read_transcripts(tmp_path)
    assert [[turn.text for turn in dialog.turns] for dialog in dialogs] == [["我（笑）不行。", "您愿意吗？"], ["我（笑）不行。"]]
    assert repairs.counts == {"timestamp left out": 2, "one side alone speaks": 1}


@pytest.mark.parametrize("client", ["A", "B", "Kim", "Speaker 2"])
def test_english_speakers_are_known_by_their_words(client: str) -> None:
    other = {"A": "B", "B": "A", "Kim": "Lee", "Speaker 2": "Speaker 1"}[client]
    understood = read(text("a.txt", labels(client, other, "{}: {}\n", ENGLISH * 2)))
    assert talks(understood) == [ENGLISH * 2]
    assert {speaker.label: (speaker.part, speaker.reason) for speaker in understood.speakers} == {
        client: ("client", "by their words"),
        other: ("counselor", "by their words"),
    }


@pytest.mark.skipif(not CASES.is_dir(), reason="no shared cases")
def test_the_shared_cases_are_read() -> None:
    counts = {}
    for path in sorted(CASES.iterdir()):
        corpus = Corpus(path=str(path))
        counts[path.name] = len(understand(files_of(corpus), "x", corpus, Repairs()).dialogs)
    assert counts == {"csv": 8, "excel": 8, "faults": 7, "openai": 8, "sharegpt": 8, "text_zh": 8}


TWO = "来访者：三\n咨询师：四"
FAULTS = (
    ("来访者：一\n来访者：二\n咨询师：三", "turns of one role merged", ["client 一+二, counselor 三"]),
    ("来访者：一\n咨询师：\n来访者：二\n咨询师：三", "empty turn dropped", ["client 一+二, counselor 三"]),
    ("咨询师：请坐\n来访者：一\n咨询师：二", "the counselor speaks first", ["counselor 请坐, client 一, counselor 二"]),
    ("来访者：一\n来访者：二", "one side alone speaks", ["client 一+二"]),
    (
        f"来访者：一\n咨询师：二\n-----\n{TWO}",
        "line between dialogs left out",
        ["client 一, counselor 二", "client 三, counselor 四"],
    ),
    (
        f"对话1\n来访者：一\n咨询师：二\n对话2\n{TWO}",
        "line between dialogs left out",
        ["client 一, counselor 二", "client 三, counselor 四"],
    ),
    (f"记录\n{TWO}", "header line left out", ["client 三, counselor 四"]),
    (f"\ufeff{TWO}", "byte order mark removed", ["client 三, counselor 四"]),
    (TWO.replace("\n", "\r\n"), "carriage return removed", ["client 三, counselor 四"]),
)


@pytest.mark.parametrize(("content", "repair", "dialogs"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_a_fault_of_a_text_is_repaired_and_counted(content: str, repair: str, dialogs: list[str]) -> None:
    understood = read(text("a.txt", content))
    assert [
        ", ".join(f"{role} {spoken}" for role, spoken in dialog).replace("\n", "+") for dialog in talks(understood)
    ] == dialogs
    assert understood.repairs.counts[repair] >= 1
    assert understood.repairs.examples[repair].startswith("a")


@pytest.mark.parametrize(
    ("records", "repair", "dialogs"),
    [
        ([("x", OPENAI), ("x", OPENAI[2:])], "id used before, number added", [TALK, TALK[2:]]),
        ([("x", OPENAI), ("y", OPENAI)], "dialog given again left out", [TALK]),
        ([("x", OPENAI[:2]), ("y", OPENAI)], "samples of one dialog joined", [TALK]),
        ([("x", [{"role": "system", "content": PROMPT}, *OPENAI])], "system turn left out", [TALK]),
        ([("x", OPENAI), ("y", [{"role": "user", "content": " "}])], "dialog without text left out", [TALK]),
    ],
)
def test_a_fault_of_records_is_repaired_and_counted(
    records: list[tuple[str, Any]], repair: str, dialogs: list[list[tuple[str, str]]]
) -> None:
    understood = read(lines("a.jsonl", *({"id": name, "messages": messages} for name, messages in records)))
    assert talks(understood) == dialogs
    assert understood.repairs.counts[repair] == 1


def test_timestamps_and_stage_directions_are_left_out_if_parameters_say_so() -> None:
    file = text("a.txt", "来访者：我（笑）不行（其实行）[00:12]。\n咨询师：您[沉默10秒]愿意吗？（点头）")
    assert talks(read(file)) == [[("client", "我（笑）不行（其实行）[00:12]。"), ("counselor", "您[沉默10秒]愿意吗？（点头）")]]
    understood = read(file, drop=["timestamps", "stage-directions"])
    assert talks(understood) == [[("client", "我不行（其实行）。"), ("counselor", "您愿意吗？")]]
    assert understood.repairs.counts == {"timestamp left out": 1, "stage direction left out": 3}


def test_parameters_say_who_speaks_and_which_columns_count() -> None:
    third = labels("来访者", "咨询师") + "妈妈：他总熬夜。\n旁白：三天后。\n"
    with pytest.raises(Problem, match=r"a.txt, line 5: the unknown speaker '妈妈', and 1 more: 旁白"):
        read(text("a.txt", third))
    (dialog,) = talks(read(text("a.txt", third), speakers={"妈妈": "client", "旁白": "drop"}))
    assert dialog[-1] == ("client", "他总熬夜。")
    (dialog,) = talks(read(text("a.txt", third), speakers={"妈妈": "speech", "旁白": "speech"}))
    assert dialog[-1] == ("counselor", f"{TALK[-1][1]}\n妈妈：他总熬夜。\n旁白：三天后。")
    swapped = read(text("a.txt", labels("来访者", "咨询师")), speakers={"来访者": "counselor", "咨询师": "client"})
    assert "the words speak against this" in (contradiction(swapped.speakers) or "")
    odd = text("a.csv", table(("x", "y", "z"), *((r[2], r[3], r[0]) for r in ROWS)))
    (dialog,) = talks(read(odd, columns={"speaker": "x", "text": "y", "dialog": "z"}))
    assert dialog == TALK


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (text("a.json", '[{"messages": '), "a.json, line 1: not JSON"),
        (text("a.jsonl", '{"messages": []}\n{"messages": \n'), "a.jsonl, line 3: not JSON"),
        (data("a.json", [{"title": "x"}]), "a.json, record 1: an object with title"),
        (data("a.json", [{"messages": [{"role": "user", "content": 5}]}]), "a.json, record 1, turn 1: a int as text"),
        (data("a.json", [{"messages": [{"role": "robot", "content": "好"}]}]), "the unknown speaker 'robot'"),
        (text("a.txt", "我睡不着。\n很累吧？"), "a.txt: no line that names a speaker; it begins “我睡不着。”"),
        (text("a.txt", "A：好的。\nB：好的。\n" * 3), "the unknown speaker 'A', and 1 more: B"),
        (text("a.csv", "a,b\n1,2\n3,4\n"), "a.csv: the columns"),
        (text("a.csv", "speaker,text\n来访者,好\n咨询师,好\n督导,好\n"), "a.csv, line 4: the unknown speaker '督导'"),
        (File("a.pdf", b"%PDF"), "a.pdf: a .pdf file"),
        (File("a.docx", b"no zip"), "a.docx: a damaged Office file"),
        (File("a.xlsx", b"no zip"), "a.xlsx: a damaged Office file"),
        (File("a.txt", bytes(range(256)) * 4), "a.txt: not UTF-8"),
        (text("a.srt", "1\n00:00:01,000 -> x\n来访者：好"), "a.srt: not SRT"),
        (text("a.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\n好\n"), "a.vtt: no line that names a speaker"),
    ],
    ids=lambda value: "" if isinstance(value, File) else value,
)
def test_what_is_no_dialog_is_refused_by_place(file: File, words: str) -> None:
    with pytest.raises(Problem) as refusal:
        read(file)
    assert words in str(refusal.value)


def test_recordings_and_hidden_files_beside_the_transcripts_are_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("b/s2.txt", "b/s10.txt", "a/s2.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(labels("来访者", "咨询师", talk=[("client", name), ("counselor", "嗯。")]), encoding="utf-8")
    (tmp_path / "a/s2.mp3").write_bytes(b"ID3")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    corpus = Corpus(path=str(tmp_path))
    understood = understand(files_of(corpus), "x", corpus, Repairs())
    assert [dialog.id for dialog in understood.dialogs] == ["a-s2", "b-s2", "b-s10"]
    assert understood.repairs.counts == {"file left out: a recording, a picture, or hidden": 1}


@given(st.text(min_size=1), st.sampled_from(["utf-8-sig", "utf-16", "utf-32"]))
def test_a_text_with_a_mark_is_decoded_as_it_was_written(content: str, encoding: str) -> None:
    try:
        written = content.encode(encoding)
    except UnicodeEncodeError:
        return
    assert decoded(written, "a.txt")[0] == content
