"""Tables of volleys: CSV, TSV, Excel, and JSON rows. One row per volley, or per round (a column for each role), or per dialog.

Columns are found by their headings, or by what is in them; parameters may name them (`columns`: dialog, turn, speaker, text).
"""

import csv
import io
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from mi_llm.corpora.files import File, office
from mi_llm.corpora.own import labeled
from mi_llm.corpora.own.draft import Draft, Volley, id_of
from mi_llm.corpora.own.speakers import known_role
from mi_llm.corpora.reading import Repairs
from mi_llm.problem import Problem

Row = tuple[str, list[str]]  # where it stands, and its cells
TURN = re.compile(
    r"(?:turn|utterance|line|row|index|idx|order|seq|round|no|nr)s?[ _.-]?(?:id|no|number|index)?|轮次|序号|轮|句序|顺序|行号",
    re.I,
)
SPEAKER = re.compile(
    r"(?:speaker|role|from|who|sender|interlocutor|participant|author)[ _.-]?(?:id|name|role|label)?"
    r"|说话人|说话者|角色|身份|发言人|讲话人",
    re.I,
)
TEXT = re.compile(
    r"(?:utterance[ _]?)?text|utterance|content|value|message|sentence|transcript|speech|words"
    r"|(?:发言|说话|对话|谈话)?内容|文本|话语|发言|语句|原文",
    re.I,
)
DIALOG = re.compile(
    r"(?:dialog(?:ue)?|conv(?:ersation)?|session|transcript|case|chat|talk)s?[ _.-]?(?:id|no|number|name)?|file(?:name)?|id"
    r"|(?:对话|会话|会谈|个案|案例|文件|样本|录音)(?:编号|号|id|名|名称)?|编号",
    re.I,
)
KINDS = {"text": TEXT, "speaker": SPEAKER, "turn": TURN, "dialog": DIALOG}  # in the order in which a heading is tried
HEADINGS = 10  # rows at the top among which the headings may be


def read_text(text: str, name: str) -> list[Row]:
    """The rows of a CSV or TSV file; raises Problem with the line that is not CSV."""
    delimiter = max("\t,;|", key=lambda mark: fields(text, mark))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return [(f"{name}, line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        where = f"{name}, line {reader.line_num + 1}"
        raise Problem(where, f"not CSV ({error})", "a CSV file", "correct that line, or save the table again") from None


def fields(text: str, delimiter: str) -> tuple[int, int]:
    """How often a delimiter separates fields: the most usual number of fields in the first lines, and in how many of them."""
    try:
        counts = [
            len(row) for row, _ in zip(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), range(20), strict=False)
        ]
    except csv.Error:
        return 0, 0
    usual = statistics.mode(counts or [0])
    return usual, counts.count(usual)


def read_excel(file: File) -> dict[str, list[Row]]:
    """The rows of each sheet of a workbook, cells as text."""
    try:
        sheets = pd.read_excel(office(file), sheet_name=None, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
    except Problem:
        raise
    except Exception as error:  # openpyxl raises whatever its parsers raise
        fault = f"not a workbook ({type(error).__name__})"
        raise Problem(file.name, fault, "a workbook (.xlsx)", "save it again as .xlsx, or as CSV") from None
    return {
        str(title): [
            (f"{file.name}, sheet {title}, row {number}", list(map(str, row)))
            for number, row in enumerate(sheet.itertuples(index=False), 1)
        ]
        for title, sheet in sheets.items()
    }


@dataclass(frozen=True)
class Source:
    """Which table it is: its file, its sheet if there are several, and the format in words."""

    file: str
    shape: str
    sheet: str = ""

    @property
    def title(self) -> str:
        """The id of its dialog, or the first part of theirs."""
        return f"{id_of(self.file)}-{self.sheet}" if self.sheet else id_of(self.file)


def drafts(rows: Sequence[Row], source: Source, columns: dict[str, str], repairs: Repairs) -> list[Draft]:
    """The dialogs of a table; raises Problem where no column holds what is said."""
    top, heads = headings(rows, columns)
    below = rows[top + 1 :] if heads else rows
    if top > 0:
        repairs.note("line above the headings left out", rows[0][0])
    places = located(heads, columns) if heads else {}
    where = f"{source.file}, sheet {source.sheet}" if source.sheet else source.file
    if missing := [column for column in columns.values() if column not in heads]:
        raise Problem(where, f"the columns {', '.join(heads)}", f"a column {missing[0]}", "correct `columns`")
    roles = {index: known_role(head) for index, head in enumerate(heads) if known_role(head)}
    if "text" not in places and set(roles.values()) == {"client", "counselor"}:
        wide = replace(source, shape=f"{source.shape} with a column for each role")
        return grouped(per_role(below, heads, list(roles)), below, places, wide, repairs)
    if not {"speaker", "text"} <= places.keys():
        places = guessed(below, places)
    if "text" in places and "speaker" not in places:
        whole = [draft for row in below for draft in whole_dialog(row, places, source.file, repairs)]
        if whole:
            return whole
    if not {"speaker", "text"} <= places.keys():
        known = ", ".join(heads) or f"{len(rows[0][1]) if rows else 0} columns without headings"
        expected = "a column with the speaker and a column with the text"
        raise Problem(where, f"the columns {known}", expected, "name them: --column speaker=… --column text=…")
    volleys = [
        [Volley(cells[places["speaker"]], cells[places["text"]], where)] for where, cells in padded(below, max(places.values()))
    ]
    return grouped(volleys, below, places, source, repairs)


def headings(rows: Sequence[Row], columns: dict[str, str]) -> tuple[int, list[str]]:
    """The row of the headings, and they; (-1, []) if the table has none."""
    for number, (_, cells) in enumerate(rows[:HEADINGS]):
        heads = [cell.strip() for cell in cells]
        if columns and set(columns.values()) <= set(heads):
            return number, heads
        kinds = {kind for head in heads for kind, pattern in KINDS.items() if pattern.fullmatch(head)}
        roles = {known_role(head) for head in heads if head}
        if ({"text"} < kinds or {"speaker"} < kinds or {"client", "counselor"} <= roles) and len(heads) > 1:
            return number, heads
        if kinds == {"text"} and len([head for head in heads if head]) == 1:
            return number, heads
    return -1, []


def located(heads: list[str], columns: dict[str, str]) -> dict[str, int]:
    """The number of each kind's column: as named, else the first whose heading fits."""
    places = {kind: heads.index(name) for kind, name in columns.items() if name in heads}
    for kind, pattern in KINDS.items():
        free = [index for index, head in enumerate(heads) if index not in places.values() and pattern.fullmatch(head)]
        if kind not in places and free:
            places[kind] = free[0]
    return places


def guessed(rows: Sequence[Row], places: dict[str, int]) -> dict[str, int]:
    """Speaker and text by what is in the columns: few short values that recur, and the longest texts."""
    width = max((len(cells) for _, cells in rows), default=0)
    columns = {
        index: [cells[index].strip() for _, cells in padded(rows, width - 1) if cells[index].strip()]
        for index in range(width)
        if index not in places.values()
    }
    column_indices = dict(places)
    if "speaker" not in column_indices:
        few = {
            index: values
            for index, values in columns.items()
            if len(values) >= 4 and 2 <= len(set(values)) <= max(2, len(values) // 2) and max(map(len, values)) <= 20
        }
        named = [index for index, values in few.items() if {known_role(value) for value in values} >= {"client", "counselor"}]
        words = [index for index, values in few.items() if not any(value.replace(".", "").isdigit() for value in values)]
        if best := named or (words if len(words) == 1 else []):
            column_indices["speaker"] = best[0]
    if "text" not in column_indices:
        free = {
            index: statistics.fmean(map(len, v)) for index, v in columns.items() if v and index != column_indices.get("speaker")
        }
        if free:
            column_indices["text"] = max(free, key=lambda index: free[index])
    if "dialog" not in column_indices and "speaker" in column_indices:
        rest = {index: values for index, values in columns.items() if index not in column_indices.values() and len(values) > 3}
        runs = [index for index, values in rest.items() if 1 < len(set(values)) <= len(values) // 2 and in_runs(values)]
        if runs:
            column_indices["dialog"] = runs[0]
    return column_indices


def in_runs(values: list[str]) -> bool:
    """Whether equal values stand together."""
    starts = [value for before, value in zip(["", *values], values, strict=False) if value != before]
    return len(starts) == len(set(starts))


def padded(rows: Sequence[Row], last: int) -> Iterator[Row]:
    """The rows, those that end early with empty cells up to a column."""
    for where, cells in rows:
        yield where, cells + [""] * (last + 1 - len(cells))


def per_role(rows: Sequence[Row], heads: list[str], roles: list[int]) -> list[list[Volley]]:
    """The volleys of each row of a table with a column for each role."""
    return [[Volley(heads[index], cells[index], where) for index in roles] for where, cells in padded(rows, max(roles))]


def whole_dialog(row: Row, places: dict[str, int], name: str, repairs: Repairs) -> list[Draft]:
    """The dialog that one cell holds, as lines with labels; none if the cell has no two labels that are known."""
    where, cells = row
    (_, padded_cells) = next(padded([row], max(places.values())))
    page = labeled.Page(name, [(where, line) for line in padded_cells[places["text"]].splitlines()])
    labels = {label for label in labeled.candidates(page) if known_role(label)}
    if len({known_role(label) for label in labels}) < 2:
        return []
    made = labeled.drafts(page, labels, repairs)
    own = cells[places["dialog"]].strip() if "dialog" in places else ""
    for number, draft in enumerate(made, 1):
        draft.id = own or f"{id_of(name)}-{where.rpartition(' ')[2]}-{number}"
        draft.named, draft.shape = bool(own), "a table with a dialog in each row"
    return made


def grouped(
    volleys: list[list[Volley]], rows: Sequence[Row], places: dict[str, int], source: Source, repairs: Repairs
) -> list[Draft]:
    """The rows' volleys by dialog: by their id, else where turns begin again or an empty row stands; in the turns' order."""
    dialogs: dict[str, list[tuple[float, list[Volley]]]] = {}
    current, number, before = "", 1, float("-inf")
    for (where, cells), said in zip(padded(rows, max(places.values(), default=0)), volleys, strict=True):
        if not any(cell.strip() for cell in cells):
            number, before = number + bool(dialogs), float("-inf")
            continue
        turn = number_of(cells[places["turn"]]) if "turn" in places else None
        if "dialog" in places:
            if cell := cells[places["dialog"]].strip():
                current = cell
            elif current:
                repairs.note("empty id taken from the row above", where)
        else:
            if turn is not None:
                number += turn < before and turn <= 1
                before = turn
            current = f"{source.title}-{number}"
        entry = dialogs.setdefault(current or source.title, [])
        order = turn if turn is not None else (entry[-1][0] if entry else 0.0)
        if turn is not None and any(turn == other and texts(said) == texts(given) for other, given in entry[-8:]):
            repairs.note("row given again left out", where)
            continue
        entry.append((order, said))
    made = []
    for key, entry in dialogs.items():
        ordered = sorted(entry, key=lambda row: row[0])
        if ordered != entry:
            repairs.note("turns put in the order of their numbers", ordered[0][1][0].where)
        own = "dialog" in places
        identity = key if own or len(dialogs) > 1 else source.title
        said = [volley for _, volleys_of_row in ordered for volley in volleys_of_row]
        made.append(Draft(identity, source.file, source.shape, said, own, {"file": source.file}))
    return made


def number_of(cell: str) -> float | None:
    """A cell as a number; None if it is none."""
    return float(cell) if re.fullmatch(r"\s*\d+(\.\d+)?\s*", cell) else None


def texts(volleys: list[Volley]) -> list[tuple[str, str]]:
    """Who says what, without where."""
    return [(volley.label, volley.text) for volley in volleys]
