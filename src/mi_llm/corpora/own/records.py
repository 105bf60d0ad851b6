"""JSON and JSON Lines, whatever the file is called: one dialog per record, or a dialog cut into many samples.

Known shapes: ShareGPT (`conversations` of `from` and `value`), OpenAI (`messages` of `role` and `content`), Alpaca
(`instruction`, `input`, `output`, `history`), xtuner (`conversation` of `system`, `input`, `output`), and any list of objects
that have a speaker and a text under a usual name. Records of one turn each, with the id of their dialog, are rows of a table.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mi_llm.corpora.own import tables
from mi_llm.corpora.own.draft import SYSTEM, TOOL, Draft, Volley, id_of
from mi_llm.corpora.own.speakers import known_role
from mi_llm.corpora.reading import Repairs, require
from mi_llm.problem import Problem

SPEAKERS = ("from", "role", "speaker", "who", "interlocutor", "sender", "author", "角色", "说话人", "发言人", "身份")
TEXTS = ("value", "content", "text", "utterance", "utterance_text", "says", "message", "sentence", "内容", "文本", "话语", "发言")
ASKED = ("input", "query", "prompt", "question", "user", "human")  # a client volley, in records of pairs
ANSWERED = ("output", "response", "answer", "assistant", "reply", "completion")
IDS = re.compile(r"(?:dialog(?:ue)?|conv(?:ersation)?|session|transcript|case)?_?id|对话编号|编号", re.IGNORECASE)
PROMPT = re.compile(r"你是|您是|扮演|咨询师|\byou are\b|\bact as\b|counsel|therapist", re.IGNORECASE)  # in an instruction
SHAPES = {("from", "value"): "ShareGPT", ("role", "content"): "OpenAI messages"}


def documents(text: str, name: str) -> list[tuple[str, Any]] | None:
    """The JSON documents of a text, each with its place; None if it is none. Raises Problem with the line that is not JSON."""
    decoder, located_values, start = json.JSONDecoder(), list[tuple[str, Any]](), 0
    must_be = name.endswith((".json", ".jsonl", ".ndjson")) and text.lstrip()[:1] in ("{", "[")
    while match := re.compile(r"[\s,]*(?=\S)").match(text, start):
        start = match.end()
        line = text.count("\n", 0, start) + 1
        if not located_values and text[start] not in "{[":
            return None
        try:
            value, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            if not located_values and not must_be:
                return None
            line = error.lineno if isinstance(error, json.JSONDecodeError) else line
            remedy = "restore the file, or correct that line"
            raise Problem(f"{name}, line {line}", f"not JSON ({error})", "one JSON value, or one per line", remedy) from None
        located_values.append((f"{name}, line {line}", value))
    return located_values or None


def drafts(located_values: list[tuple[str, Any]], name: str, columns: dict[str, str], repairs: Repairs) -> list[Draft]:
    """The dialogs of a file's JSON documents; raises Problem for a record that holds none."""
    records = list(spread(located_values))
    stem = id_of(name)
    if all(is_turn(value) for _, _, value in records):
        rows = [(where, value) for where, _, value in records]
        keys = list(dict.fromkeys(key for _, row in rows for key in row))
        if columns or any(map(tables.DIALOG.fullmatch, keys)):
            cells = [(where, ["" if row.get(key) is None else str(row[key]) for key in keys]) for where, row in rows]
            return tables.drafts([("", keys), *cells], tables.Source(name, "JSON table"), columns, repairs)
        return [Draft(stem, name, shape_of(records[0][2]), [turn(value, where, repairs) for where, value in rows])]
    shared = Counter(value.get("instruction") for _, _, value in records if isinstance(value, dict) and is_alpaca(value))
    made = []
    for number, (where, key, value) in enumerate(records, 1):
        draft = record(value, where, shared, repairs)
        own = next((str(value[id_]) for id_ in value if IDS.fullmatch(id_) and value[id_] is not None), "") if draft.named else ""
        draft.id, draft.named = own or key or (stem if len(records) == 1 else f"{stem}-{number}"), bool(own or key)
        draft.file, draft.meta = name, {"file": name, "place": number}
        made.append(draft)
    return made


def spread(located_values: list[tuple[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """The records of some documents, as (where, id or nothing, record): of a list, of a mapping by id, or below one key."""
    for where, value in located_values:
        if isinstance(value, list) and not (value and all(map(is_turn, value)) and len(located_values) > 1):
            yield from ((f"{where.rpartition(',')[0]}, record {number}", "", entry) for number, entry in enumerate(value, 1))
        elif isinstance(value, dict) and not is_record(value) and len(lists := [v for v in value.values() if nested(v)]) == 1:
            yield from spread([(f"{where}, record 1", lists[0])])
        elif isinstance(value, dict) and not is_record(value) and all(nested(entry) for entry in value.values()):
            yield from ((f"{where}, {key!r}", str(key), entry) for key, entry in value.items())
        else:
            yield where, "", value


def nested(value: Any) -> bool:
    """Whether a value may hold dialogs: a list of objects or lists, or a record."""
    return (isinstance(value, list) and bool(value) and isinstance(value[0], dict | list)) or (
        isinstance(value, dict) and is_record(value)
    )


def key_of(entry: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The key of an object that is one of some names."""
    return next((name for name in names if name in entry), None)


def is_turn(value: Any) -> bool:
    """Whether a value is what one person says: an object with a speaker and a text."""
    return isinstance(value, dict) and key_of(value, SPEAKERS) is not None and key_of(value, TEXTS) is not None


def is_pair(value: Any) -> bool:
    """Whether a value holds a client volley with its answer, or volleys under the names of their speakers."""
    if not isinstance(value, dict):
        return False
    return (key_of(value, ASKED) and key_of(value, ANSWERED)) is not None or (bool(value) and all(map(known_role, value)))


def is_alpaca(value: dict[str, Any]) -> bool:
    """Whether a record is one sample of instruction or input, and output."""
    return key_of(value, ANSWERED) is not None and (key_of(value, ASKED) or key_of(value, ("instruction",))) is not None


def is_record(value: dict[str, Any]) -> bool:
    """Whether an object is one dialog."""
    return is_turn(value) or is_alpaca(value) or turns_key(value) is not None


def turns_key(value: dict[str, Any]) -> str | None:
    """The key of a record's turns or pairs: of its longest list of them."""
    keys = [key for key, entries in value.items() if key != "history" and isinstance(entries, list) and entries]
    fitting = [key for key in keys if all(is_turn(entry) or is_pair(entry) for entry in value[key])]
    return max(fitting, key=lambda key: len(value[key]), default=None)


def record(value: Any, where: str, shared: Counter[Any], repairs: Repairs) -> Draft:
    """One record as a dialog without id; `named`: whether it may have one. `shared` counts the instructions of all records."""
    if isinstance(value, list) and value and all(is_turn(entry) or is_pair(entry) for entry in value):
        return Draft("", "", shape_of(value[0]), turns(value, where, repairs))
    expected = "a dialog: a list of turns with a speaker and a text each, or input and output"
    require(isinstance(value, dict), where, f"a JSON {type(value).__name__}", expected)
    if (key := turns_key(value)) is not None:
        prompt = [Volley(SYSTEM, value["system"], where)] if isinstance(value.get("system"), str) else []
        shape = f"{shape_of(value[key][0])} (`{key}`)"
        return Draft("", "", shape, prompt + turns(value[key], where, repairs), named=True)
    require(is_alpaca(value), where, f"an object with {', '.join(map(str, value)) or 'nothing'}", expected)
    return Draft("", "", "Alpaca", sample(value, where, shared, repairs), named=True)


def sample(value: dict[str, Any], where: str, shared: Counter[Any], repairs: Repairs) -> list[Volley]:
    """The volleys of an Alpaca sample: history, then input and output. An instruction is a prompt, or what the client says."""
    volleys: list[Volley] = []
    history = value.get("history") or []
    require(isinstance(history, list), where, f"a {type(history).__name__} as history", "a list of pairs")
    for earlier in history:
        if is_turn(earlier) or is_pair(earlier):
            volleys += turns([earlier], where, repairs)
            continue
        two = isinstance(earlier, list) and len(earlier) == 2
        require(two, where, "a malformed history", "a list of pairs of what the client and the counselor say")
        volleys += [Volley("user", earlier[0], where), Volley("assistant", earlier[1], where)]
    instruction, asked = value.get("instruction") or "", value.get(key_of(value, ASKED) or "") or ""
    if instruction and asked:
        if shared[instruction] > 1 or history or PROMPT.search(str(instruction)):
            volleys.insert(0, Volley(SYSTEM, instruction, where))
        else:
            asked = f"{instruction}\n{asked}"
    if isinstance(value.get("system"), str):
        volleys.insert(0, Volley(SYSTEM, value["system"], where))
    answer = value[key_of(value, ANSWERED) or ""]
    return [*volleys, Volley("user", asked or instruction, where), Volley("assistant", answer, where)]


def turns(entries: list[Any], where: str, repairs: Repairs) -> list[Volley]:
    """The volleys of a list of turns or pairs."""
    volleys: list[Volley] = []
    for number, entry in enumerate(entries, 1):
        turn_where = f"{where}, turn {number}"
        if is_turn(entry):
            volleys.append(turn(entry, turn_where, repairs))
        elif all(map(known_role, entry)):
            volleys += [Volley(key, text, turn_where) for key, text in entry.items()]
        else:
            asked, answered = key_of(entry, ASKED), key_of(entry, ANSWERED)
            prompt = [Volley(SYSTEM, entry["system"], turn_where)] if entry.get("system") else []
            said = (("user", entry[asked or ""]), ("assistant", entry[answered or ""]))
            volleys += [*prompt, *(Volley(label, text, turn_where) for label, text in said)]
    return volleys


def turn(entry: dict[str, Any], where: str, repairs: Repairs) -> Volley:
    """One turn; of content in parts, those that are text."""
    label, text = entry[key_of(entry, SPEAKERS) or ""], entry[key_of(entry, TEXTS) or ""]
    require(isinstance(label, str | int), where, f"the speaker {label!r}", "a name")
    if isinstance(text, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in text]
        if any(not isinstance(part, str) for part in parts):
            repairs.note("part of a message that is no text left out", where)
        text = "".join(part for part in parts if isinstance(part, str))
    if entry.get("tool_calls") and not text:
        return Volley(TOOL, "", where)
    return Volley(str(label), "" if text is None else text, where)


def shape_of(entry: dict[str, Any]) -> str:
    """The name of a shape, by the keys of a turn."""
    if is_turn(entry):
        keys = (key_of(entry, SPEAKERS) or "", key_of(entry, TEXTS) or "")
        return SHAPES.get(keys, f"JSON turns of `{keys[0]}` and `{keys[1]}`")
    return "xtuner pairs" if key_of(entry, ASKED) else "JSON turns by speaker"
