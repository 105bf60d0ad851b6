"""The authors' release (CbyerDragon/MI-LLM, branch master): test dialogs and rounds, training file, simulated dialogs, appendix.

The published test rounds are *positional*: message 2i is taken as the client's and message 2i + 1 as the counselor's, whoever
spoke. `alignment` shows where that goes wrong, and the dialogs' own rounds (`Dialog.rounds`) are the repaired test set.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import docx
import openpyxl
import pandas as pd

from mi_llm import storage
from mi_llm.corpora.files import File, office
from mi_llm.corpora.labels import role_of
from mi_llm.corpora.reading import Repairs, assemble, parse_entries, parse_list, require, unique
from mi_llm.dialog import Dialog, Round, Turn, write_dialogs, write_rounds
from mi_llm.language.language import Text
from mi_llm.paper.models import tuned
from mi_llm.problem import Problem

NAME = Text("Authors' release", "作者公布的数据")
DIALOGS = "训练集和测试集/eval_40 - 转换前.json"
ROUNDS = "训练集和测试集/eval_40.json"
TRAINING = "训练集和测试集/trian_2000.json"  # spelled like this in the release
SIMULATED = "人工评价/模拟对话.xlsx"
APPENDIX = "附录.docx"

OUTLINES = "对话纲要"
OUTLINE_COLUMNS = {"健康行为": "behavior", "具体表现": "manifestation", "行为原因": "reason", "改变意愿": "willing"}
ARMS = {"微调": "tuned", "原始": "base"}
MODELS = {word: name for name, model in tuned().items() for word in model.sheets}  # by a word in a sheet's title
REMARK = re.compile(r"^[（(]\s*(PS|ps|注|备注)\s*[:：].*[）)]$", re.DOTALL)  # a researcher speaking beside the dialog
SECTIONS = {"三": "rating", "四": "transcription"}  # the appendix's sections that hold a prompt
HEADING = re.compile(r"([一二三四五六])、(?=动机式|GPT-4|模型微调)")


def read(files: Iterable[File], repairs: Repairs) -> Iterator[Dialog]:
    """Yield the 40 test dialogs as published, whoever speaks first; `assemble` merges slips and says so."""
    for file in files:
        if file.name == DIALOGS:
            for dialog_number, messages in enumerate(conversations(file), 1):
                where = f"{file.name}, dialog {dialog_number}"
                volleys = [
                    (message.get("role"), message.get("content"), f"{where}, turn {number}") for number, message in messages
                ]
                for label, _, turn in volleys:
                    if label in ("user", "assistant"):
                        repairs.note(f"role {label} renamed to {role_of(label)}", turn)
                labels = list(dict.fromkeys(str(label) for label, _, _ in volleys))
                yield from assemble(
                    f"eval-{dialog_number}",
                    "mi-llm-release",
                    volleys,
                    repairs,
                    {"file": file.name, "place": dialog_number, "labels": labels},
                )


def conversations(file: File) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yield the numbered messages of each dialog of a file in the `conversations` shape."""
    for _, _, where, entry in parse_entries([file], "dialog", "conversations"):
        messages = entry["conversations"]
        for number, message in enumerate(messages, 1):
            require(isinstance(message, dict), f"{where}, turn {number}", f"a JSON {type(message).__name__}", "{role, content}")
        yield list(enumerate(messages, 1))


def pair(client: str, counselor: str) -> tuple[Turn, Turn]:
    """One round of a sample's history as two turns."""
    return Turn(role="client", text=client), Turn(role="counselor", text=counselor)


class Sample(NamedTuple):
    """One Alpaca record: the instruction, the client's volley, the reply, and the (input, output) pairs before it."""

    where: str
    instruction: str
    client: str
    reply: str
    history: list[tuple[str, str]]


def samples(file: File, repairs: Repairs) -> Iterator[Sample]:
    """Yield the records of an Alpaca file, checked; the instruction's key is `instruction`, once `""`."""
    for sample_number, sample in enumerate(parse_list(file, "samples"), 1):
        where = f"{file.name}, sample {sample_number}"
        require(isinstance(sample, dict), where, f"a JSON {type(sample).__name__}", "an object")
        if "instruction" not in sample and "" in sample:
            repairs.note('key "" read as instruction', where)
        instruction_text = sample.get("instruction", sample.get("", ""))
        require(isinstance(instruction_text, str), where, f"a {type(instruction_text).__name__} as instruction", "a string")
        client, reply, history = sample.get("input"), sample.get("output"), sample.get("history") or []
        require(isinstance(client, str) and isinstance(reply, str), where, "no text in input or output", "strings")
        require(isinstance(history, list), where, f"a {type(history).__name__} as history", "a list of pairs")
        for earlier in history:
            well_formed = isinstance(earlier, list) and len(earlier) == 2 and all(isinstance(text, str) for text in earlier)
            require(well_formed, where, "a malformed history", "a list of pairs of strings")
        yield Sample(where, instruction_text.strip(), client, reply, [(earlier[0], earlier[1]) for earlier in history])


def instruction(files: Iterable[File]) -> str:
    """The instruction that all published test samples share; empty without the file."""
    instructions = {sample.instruction for file in files if file.name == ROUNDS for sample in samples(file, Repairs())}
    require(len(instructions) <= 1, ROUNDS, f"{len(instructions)} different instructions", "one instruction")
    return instructions.pop() + "\n" if instructions else ""


def read_rounds(files: Iterable[File], repairs: Repairs) -> Iterator[Round]:
    """Yield the 367 published test samples, positional as the authors used them: (message 2i, message 2i + 1).

    A sample with an empty history opens a new dialog.
    """
    for file in files:
        if file.name == ROUNDS:
            dialog = 0
            for sample in samples(file, repairs):
                dialog += not sample.history
                number = len(sample.history) + 1
                yield Round(
                    id=f"eval-{dialog}#{number}",
                    dialog=f"eval-{dialog}",
                    number=number,
                    history=tuple(turn for before in sample.history for turn in pair(*before)),
                    client=sample.client,
                    counselor=sample.reply,
                )


def alignment(files: Iterable[File], published: Iterable[Round]) -> pd.DataFrame:
    """Who really speaks in each published sample: columns round, input_role, output_role, status, reason.

    `status` is `aligned` where a counselor volley answers a client volley, else `shifted`. The reason comes from the dialog as
    published: it opens with the counselor, or a role speaks twice before this round.
    """
    roles = {
        f"eval-{dialog_number}": [role_of(message.get("role")) or "?" for _, message in messages]
        for file in files
        if file.name == DIALOGS
        for dialog_number, messages in enumerate(conversations(file), 1)
    }
    rows = []
    for sample in published:
        spoken = roles[sample.dialog]
        first = 2 * (sample.number - 1)
        asked, answered = spoken[first], spoken[first + 1]
        shifted = (asked, answered) != ("client", "counselor")
        twice = any(before == after for before, after in pairwise(spoken[: first + 2]))
        why = "a role speaks twice before it" if twice else "the dialog opens with the counselor"
        rows.append(
            {"round": sample.id, "input_role": asked, "output_role": answered, "status": "shifted" if shifted else "aligned"}
            | {"reason": why if shifted else ""}
        )
    return pd.DataFrame(rows, columns=["round", "input_role", "output_role", "status", "reason"])


def read_training(files: Iterable[File], repairs: Repairs) -> tuple[str, list[Dialog]]:
    """Read the training file, in any of the formats that the authors' tool accepts; returns (description, dialogs).

    These are `conversations` (one record per dialog), and Alpaca with history: one record per dialog (its last round, with all
    before it) or one per round (as in the test file). Without the file: ("", []).
    """
    for file in files:
        if file.name != TRAINING:
            continue
        entries = parse_list(file, "training records")
        require(bool(entries) and isinstance(entries[0], dict), file.name, "no record", "training records")
        if "conversations" in entries[0]:
            dialogs = [
                dialog
                for dialog_number, messages in enumerate(conversations(file), 1)
                for dialog in assemble(
                    f"train-{dialog_number}",
                    "mi-llm-release",
                    [
                        (message.get("role"), message.get("content"), f"{file.name}, dialog {dialog_number}, turn {n}")
                        for n, message in messages
                    ],
                    repairs,
                    {"file": file.name, "place": dialog_number, "records": "dialog"},
                )
            ]
            return f"conversations: {len(dialogs)} records, one dialog each", dialogs
        records = list(samples(file, repairs))
        last = [
            sample
            for sample, after in zip(records, [*records[1:], None], strict=True)
            if after is None or after.history[: len(sample.history) + 1] != [*sample.history, (sample.client, sample.reply)]
        ]
        level = "dialog" if len(last) == len(records) else "round"
        dialogs = []
        for dialog_number, sample in enumerate(last, 1):
            pairs = [*sample.history, (sample.client, sample.reply)]
            volleys = [
                (role, text, sample.where) for client, reply in pairs for role, text in (("client", client), ("counselor", reply))
            ]
            meta = {"file": file.name, "place": dialog_number, "records": level}
            dialogs += assemble(f"train-{dialog_number}", "mi-llm-release", volleys, repairs, meta)
        what = "one dialog each" if level == "dialog" else f"one round each, from {len(last)} dialogs"
        return f"Alpaca with history: {len(records)} records, {what}", dialogs
    return "", []


def read_simulated(files: Iterable[File], repairs: Repairs) -> tuple[list[Dialog], list[dict[str, str]]]:
    """Read the role-played dialogs (one sheet per model and arm, one column per dialog) and the client outlines."""
    for file in files:
        if file.name != SIMULATED:
            continue
        content = office(file)
        try:
            book = openpyxl.load_workbook(content, data_only=True)
            sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
        except Exception as error:  # openpyxl raises whatever its parsers raise
            fault = f"not a workbook ({type(error).__name__})"
            raise Problem(file.name, fault, "the workbook as published", "restore it from its source") from None
        require(bool(sheets.get(OUTLINES)), file.name, "no sheet of outlines", f"the sheet {OUTLINES}")
        dialogs = (
            dialog for title, rows in sheets.items() if title != OUTLINES for dialog in sheet_dialogs(file, title, rows, repairs)
        )
        return list(unique(dialogs, repairs)), outlines(file, sheets[OUTLINES])
    return [], []


def sheet_dialogs(file: File, title: str, rows: list[tuple[Any, ...]], repairs: Repairs) -> Iterator[Dialog]:
    """Yield the dialogs of one sheet, one per column.

    Speakers alternate by row, also below the last label. A cell that a researcher used for a remark is left out of the dialog and
    counted in its `meta["remarks"]`; `meta` also names the model, the arm and the dialog's number.
    """
    arm = next((arm for word, arm in ARMS.items() if word in title), None)
    model = next((model for word, model in MODELS.items() if word in title.lower()), None)
    sheet = f"{file.name}, sheet {title}"
    require(
        bool(arm and model and rows), sheet, "a sheet of an unknown model and arm", f"one of {', '.join(MODELS)}, 微调 or 原始"
    )
    speakers: list[str] = []
    for number, (label, *_) in enumerate(rows[1:], 2):
        speakers.append(("client", "counselor")[number % 2])
        known = label is None or role_of(label) == speakers[-1]
        require(known, f"{sheet}, row {number}", f"the label {label!r}", f"the {speakers[-1]}'s")
        if label is None:
            repairs.note("unlabeled row given its speaker by position", f"{sheet}, row {number}")
    for column, name in enumerate(rows[0][1:], 1):
        volleys, remarks = [], 0
        for number, (speaker, row) in enumerate(zip(speakers, rows[1:], strict=True), 2):
            cell, where = row[column], f"{sheet}, row {number}, column {column + 1}"
            require(cell is None or isinstance(cell, str), where, f"a {type(cell).__name__}", "text")
            if cell is not None and REMARK.match(cell.strip()):
                repairs.note("researcher's remark left out", where)
                remarks += 1
            elif cell is not None:
                volleys.append((speaker, cell, where))
        if volleys:
            meta = {"file": file.name, "sheet": title, "model": model, "arm": arm, "number": name, "remarks": remarks}
            yield from assemble(f"{model}-{arm}-{name}", "mi-llm-release", volleys, repairs, meta)
        else:
            repairs.note("empty column left out", f"{sheet}, column {column + 1}")


def outlines(file: File, rows: list[tuple[Any, ...]]) -> list[dict[str, str]]:
    """The standardized clients: behavior, manifestation, reason, willing; an empty behavior is that of the row above."""
    head = {str(title): column for column, title in enumerate(rows[0]) if title}
    for title in OUTLINE_COLUMNS:
        require(title in head, f"{file.name}, sheet {OUTLINES}", f"the columns {', '.join(head)}", f"a column {title}")
    client_outlines: list[dict[str, str]] = []
    for row in rows[1:]:
        outline = {name: str(row[head[title]] or "").replace("\xa0", " ").strip() for title, name in OUTLINE_COLUMNS.items()}
        if not outline["behavior"] and client_outlines:
            outline["behavior"] = client_outlines[-1]["behavior"]
        if any(outline.values()):
            client_outlines.append(outline)
    return client_outlines


def read_appendix(files: Iterable[File]) -> dict[str, str]:
    """The appendix's sections as text, by their Chinese number (一 to 六); without the file: {}.

    三 is the rating prompt, 四 the transcription prompt, 五 the hyperparameters, each without its headings.
    """
    for file in files:
        if file.name != APPENDIX:
            continue
        content = office(file)
        try:
            blocks = list(docx.Document(content).iter_inner_content())
        except Exception as error:  # python-docx raises whatever its parsers raise
            raise Problem(
                file.name, f"not a document ({type(error).__name__})", "the document as published", "restore it from its source"
            ) from None
        sections: dict[str, list[str]] = {}
        current: list[str] = []
        for block in blocks:
            text = (
                block.text
                if hasattr(block, "text")
                else "\n".join(" | ".join(cell.text for cell in row.cells) for row in block.rows)
            )
            heading = HEADING.match(text.strip())
            if heading:
                current = sections[heading[1]] = []  # the table of contents comes first and is overwritten
            else:
                current.append(text)
        texts = {name: "\n".join(lines).strip() + "\n" for name, lines in sections.items()}
        for name in ("三", "四", "五"):
            require(
                bool(texts.get(name, "").strip()), file.name, f"no section {name}", "prompts and hyperparameters as published"
            )
        return texts
    return {}


def hyperparameters(section: str) -> dict[str, str]:
    """The `key: value` lines of section 五."""
    pairs = [line.split(":", 1) for line in section.splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, value in pairs}


def write_rest(files: list[File], repairs: Repairs, out: Path) -> dict[str, object]:
    """Write what the release holds beside its dialogs; returns numbers for `metrics.json`.

    `rounds.jsonl` (published, positional), `aligned.jsonl` (the dialogs' own rounds), `alignment.csv`, `training.jsonl`,
    `simulated.jsonl`, `outlines.json`, `prompts/{rating,transcription,counselor}.txt`, `hyperparameters.json`.
    """
    published = list(read_rounds(files, repairs))
    write_rounds(out / "rounds.jsonl", published)
    aligned = [sample for dialog in read(files, Repairs()) for sample in dialog.rounds()]
    write_rounds(out / "aligned.jsonl", aligned)
    table = alignment(files, published)
    storage.write_table(out / "alignment.csv", table)
    shape, training = read_training(files, repairs)
    write_dialogs(out / "training.jsonl", training)
    simulated, clients = read_simulated(files, repairs)
    write_dialogs(out / "simulated.jsonl", simulated)
    storage.write_json(out / "outlines.json", clients)
    sections = read_appendix(files)
    for number, name in SECTIONS.items():
        storage.write_text(out / "prompts" / f"{name}.txt", sections.get(number, ""))
    storage.write_text(out / "prompts" / "counselor.txt", instruction(files))
    storage.write_json(out / "hyperparameters.json", hyperparameters(sections.get("五", "")))
    return {
        "rounds": len(published),
        "rounds_aligned": len(aligned),
        "rounds_shifted": int((table["status"] == "shifted").sum()),
        "training_file": shape or "not had",
        "training_dialogs": len(training),
        "simulated_dialogs": len(simulated),
        "client_outlines": len(clients),
    }
