"""Stage `code`: give every packet its MITI codes (paper, Methods, Manual Evaluation), by people, a language model or words alone.

Reads `blind/packets/` and what the coder that `code.coder` names needs beside it (a module of `miti/coder/`): `codes.csv` and
`globals.csv` of people (folder `code.human`), recorded answers of a language model (`llm/ask.py`), or nothing. Writes
`code/codes.csv` and `globals.csv` and, of a model, `cassette.jsonl`, kept from run to run. The column `rater` says who coded:
`lexical` and `llm:<model>` are programs, and no person may use these names.

The model is asked twice about each counselor volley, first to cut it into utterances, then to code them, and once about each
transcript for the globals. What it is told of the codes is the codebook (`coding.py`).
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from mi_llm import prompts, registry, storage
from mi_llm.codebook import lexical
from mi_llm.codebook.coding import BEHAVIOURS, GLOBALS, Behaviour, Global, volley
from mi_llm.dialog import Turn
from mi_llm.llm import ask
from mi_llm.llm.cassette import Check, Question, text_of
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Study

Behaviours = dict[int, frozenset[Behaviour]]  # by the number of a counselor turn: what the coder saw in it
Transcripts = Mapping[str, Sequence[Turn]]
VolleyId = tuple[str, int]  # a transcript's name, and the number of one of its turns

CODES = ["rater", "packet", "volley", "code"]
RATINGS = ["rater", "packet", "code", "rating"]
LEXICAL, MODEL = "lexical", "llm:"  # raters that are programs: a name, and the beginning of the other names
PEOPLE = "human"  # the coder whose raters may have any name except a program's
NONE = "none"  # what a model says of an utterance without a code
CONTEXT = 6  # turns before a volley that the model sees
SCALE = range(1, 6)


@dataclass(frozen=True)
class Coding:
    """One transcript as one rater coded it; `ratings` is empty where the globals were not rated."""

    rater: str
    packet: str
    behaviours: Behaviours
    ratings: dict[Global, int]


class Packet(BaseModel):
    """A blinded transcript, as `blind` writes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    packet: str
    turns: tuple[Turn, ...]


def packets(folder: Path) -> dict[str, tuple[Turn, ...]]:
    """The blinded transcripts by name."""
    transcripts = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == "raters.json":
            continue
        try:
            packet = Packet.model_validate(storage.read_json(path))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            location = ".".join(str(part) for part in fault["loc"])
            raise Problem(
                str(path), f"{location}: {fault['msg']}", "a packet as written by stage blind", "run stage blind again"
            ) from None
        transcripts[packet.packet] = packet.turns
    return transcripts


def volleys(turns: Sequence[Turn]) -> list[int]:
    """The numbers of the counselor's turns; turns of both roles count from 1."""
    return [number for number, turn in enumerate(turns, 1) if turn.role == "counselor"]


# By words


def by_words(turns: Sequence[Turn]) -> Behaviours:
    """What the lexical coder sees in each counselor turn."""
    seen: Behaviours = {}
    client = ""
    for number, turn in enumerate(turns, 1):
        if turn.role == "client":
            client = turn.text
        else:
            seen[number] = volley(utterance.behaviour for utterance in lexical.code(client, turn.text))
    return seen


# By people


def rows(path: Path, columns: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (where, row) of a CSV file with these columns; rows are numbered as a spreadsheet shows them."""
    table = csv.reader(io.StringIO(storage.read_text(path), newline=""), strict=True)
    number = 0
    try:
        for number, row in enumerate(table, 1):
            where = f"{path}, row {number}"
            if number == 1:
                require(row == columns, where, f"the columns {', '.join(row)}", f"{', '.join(columns)}")
            elif row:
                require(len(row) == len(columns), where, f"{len(row)} columns", f"{len(columns)}: {', '.join(columns)}")
                yield where, row
    except csv.Error as error:
        raise refusal(f"{path}, row {number + 1}", f"not CSV ({error})", "a CSV file") from None
    require(number > 0, str(path), "an empty file", f"the columns {', '.join(columns)}")


def refusal(where: str, found: str, expected: str) -> Problem:
    """The error for a person's file that is not usable."""
    return Problem(where, found, expected, "correct the file, or export it from the desk again")


def require(condition: bool, where: str, found: str, expected: str) -> None:
    """Refuse a person's file that does not meet a condition."""
    if not condition:
        raise refusal(where, found, expected)


def coder_of(rater: str) -> str:
    """The coder that a rater belongs to, by the name: a program's begins with its coder's name, perhaps a colon and more."""
    name = rater.partition(":")[0]
    return name if name in registry.names(registry.CODERS) else PEOPLE


def automatic(rater: str) -> bool:
    """Whether a rater is a program."""
    return coder_of(rater) != PEOPLE


def whose(where: str, rater: str, packet: str, transcripts: Transcripts) -> tuple[str, str]:
    """The rater and packet of a row; refused unless the rater is a person and the packet belongs to this study."""
    person = rater == rater.strip() != "" and not automatic(rater)
    programs = " or ".join(name for name in registry.names(registry.CODERS) if name != PEOPLE)
    require(person, where, f"the rater {rater!r}", f"a person's name or number, not {programs}")
    require(packet in transcripts, where, f"the packet {packet!r}", "the name of a packet of this study")
    return rater, packet


def by_people(folder: Path, transcripts: Transcripts) -> list[Coding]:
    """What people coded: `codes.csv` and `globals.csv` of a folder."""
    seen = coded_by_people(folder / "codes.csv", transcripts)
    rated = rated_by_people(folder / "globals.csv", transcripts)
    return [Coding(*key, seen.get(key, {}), rated.get(key, {})) for key in sorted(seen.keys() | rated.keys())]


def coded_by_people(path: Path, transcripts: Transcripts) -> dict[tuple[str, str], Behaviours]:
    """The codes of `codes.csv` by rater and packet: every counselor turn of a packet, or none."""
    coded_packets: dict[tuple[str, str], dict[int, list[str]]] = {}
    for where, (rater, packet, number, code) in rows(path, CODES):
        key = whose(where, rater, packet, transcripts)
        turn_numbers = {str(turn_number): turn_number for turn_number in volleys(transcripts[packet])}
        require(number in turn_numbers, where, f"the volley {number!r}", "the number of a turn of the counselor in this packet")
        require(not code or code in list(Behaviour), where, f"the code {code!r}", f"{', '.join(Behaviour)}, or nothing")
        codes = coded_packets.setdefault(key, {}).setdefault(turn_numbers[number], [])
        require(code not in codes, where, f"the code {code!r} of the same volley again", "each code once per volley")
        require(not codes or bool(code and codes[0]), where, "a volley with a code and with none", "codes, or one empty row")
        codes.append(code)
    for (rater, packet), coded in coded_packets.items():
        missing = [number for number in volleys(transcripts[packet]) if number not in coded]
        gap = f"nothing by {rater} on volley {missing[0]} of packet {packet}" if missing else ""
        require(not missing, str(path), gap, "every counselor turn coded, with an empty code if nothing is to code")
    return {
        key: {number: volley(Behaviour(code) for code in codes if code) for number, codes in coded.items()}
        for key, coded in coded_packets.items()
    }


def rated_by_people(path: Path, transcripts: Transcripts) -> dict[tuple[str, str], dict[Global, int]]:
    """The ratings of `globals.csv` by rater and packet: all globals of a packet, or none."""
    rated_packets: dict[tuple[str, str], dict[Global, int]] = {}
    for where, (rater, packet, code, rating) in rows(path, RATINGS):
        key = whose(where, rater, packet, transcripts)
        require(code in list(Global), where, f"the code {code!r}", ", ".join(Global))
        require(rating in {str(number) for number in SCALE}, where, f"the rating {rating!r}", "a whole number from 1 to 5")
        ratings = rated_packets.setdefault(key, {})
        require(code not in ratings, where, f"the rating of {code} again", "each global once per packet")
        ratings[Global(code)] = int(rating)
    for (rater, packet), ratings in rated_packets.items():
        missing = [code for code in Global if code not in ratings]
        require(not missing, str(path), f"no {', '.join(missing)} by {rater} on packet {packet}", "all four globals")
    return rated_packets


# By a language model


def quoted(value: object) -> str:
    """A transcript's text for a prompt, as a JSON string: no character of it can close the quotes or open a tag."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def lines(turns: Sequence[Turn], first: int = 1) -> str:
    """Some turns for a prompt: a line each, with the turn's number and role, the text quoted."""
    return "\n".join(f"{number} {turn.role} {quoted(turn.text)}" for number, turn in enumerate(turns, first))


def numbered(texts: Sequence[str]) -> str:
    """Some texts for a prompt: a line each, numbered from 1, quoted."""
    return "\n".join(f"{number} {quoted(text.strip())}" for number, text in enumerate(texts, 1))


def form(name: str, **properties: object) -> dict[str, Any]:
    """A structured answer: a JSON object with exactly these properties."""
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


Value = TypeVar("Value")


def checked(parse: Callable[[str], Value]) -> Check:
    """A check that runs `parse` on an answer; the message of its ValueError is what is wrong."""

    def check(answer: str) -> str | None:
        try:
            parse(answer)
        except ValueError as error:
            return str(error)
        return None

    return check


def content(answer: str, name: str, kind: type) -> Any:
    """One property of a JSON object. Raises ValueError, with the reason."""
    parsed = ask.parsed(answer)
    value = parsed.get(name) if isinstance(parsed, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"no {name}")
    return value


def clauses(text: str) -> list[str]:
    """A volley cut wherever an utterance could begin: at its marks. Joined, the clauses are the volley; each says something."""
    joined: list[str] = []
    for piece in (clause for sentence in lexical.SENTENCE.findall(text) for clause in lexical.CLAUSE.findall(sentence)):
        if joined and not (speaks(piece) and speaks(joined[-1])):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def speaks(text: str) -> bool:
    """Whether there is a letter or digit in a text."""
    return any(map(str.isalnum, text))


def utterances_of(answer: str, pieces: Sequence[str]) -> list[str]:
    """The utterances that an answer makes of a volley's clauses: it names the first clause of each. Raises ValueError."""
    starts = content(answer, "starts", list)
    all_integers = all(type(start) is int for start in starts)
    if not all_integers or starts != sorted({1, *starts} & set(range(1, len(pieces) + 1))):
        raise ValueError(f"utterances that start with the clauses {starts}, not with 1 and then some of 2 to {len(pieces)}")
    ends = [*(start - 1 for start in starts[1:]), len(pieces)]
    return ["".join(pieces[start - 1 : end]) for start, end in zip(starts, ends, strict=True)]


def behaviours_of(answer: str, count: int) -> list[Behaviour | None]:
    """The codes that an answer gives to `count` utterances, in their order; None for no code. Raises ValueError."""
    entries = content(answer, "codes", list)
    numbers = [entry.get("utterance") if isinstance(entry, dict) else None for entry in entries]
    if numbers != list(range(1, count + 1)):
        raise ValueError(f"codes of the utterances {numbers}, not of 1 to {count}")
    codes = [entry.get("code") for entry in entries]
    unknown = [code for code in codes if code not in (*Behaviour, NONE)]
    if unknown:
        raise ValueError(f"the code {unknown[0]!r}")
    return [None if code == NONE else Behaviour(code) for code in codes]


def ratings_of(answer: str) -> dict[Global, int]:
    """The globals of an answer. Raises ValueError."""
    ratings = {code: content(answer, code, int) for code in Global}
    for code, rating in ratings.items():
        if isinstance(rating, bool) or rating not in SCALE:
            raise ValueError(f"{code} is {rating!r}, not 1 to 5")
    return ratings


def question(study: Study, about: str, name: str, answer: dict[str, Any], check: Check, **inputs: object) -> Question:
    """A request with one of the coder's prompts."""
    prompt = prompts.bundled(name)
    request = {
        "model": study.llm.model,
        "messages": [{"role": "user", "content": prompts.render(name, **inputs)}],
        "temperature": study.code.temperature,
        "response_format": answer,
    }
    return Question(about, request, prompt.provenance, check)


def cutting(study: Study, pieces: Mapping[VolleyId, list[str]]) -> dict[VolleyId, Question]:
    """The first pass: at which of its clauses do a volley's utterances begin? A volley of one clause needs no question."""
    answer = form("utterances", starts={"type": "array", "items": {"type": "integer"}})

    def asked(name: str, number: int, volley_clauses: list[str]) -> Question:
        about = f"the utterances of volley {number} of {name}"
        check = checked(lambda text: utterances_of(text, volley_clauses))
        return question(study, about, "miti_segment", answer, check, clauses=numbered(volley_clauses))

    return {
        (name, number): asked(name, number, volley_clauses)
        for (name, number), volley_clauses in pieces.items()
        if len(volley_clauses) > 1
    }


def coding(study: Study, transcripts: Transcripts, utterances: Mapping[VolleyId, list[str]]) -> dict[VolleyId, Question]:
    """The second pass: which code has each utterance of a volley, in view of the turns before it?"""
    entry = {
        "type": "object",
        "properties": {"utterance": {"type": "integer"}, "code": {"type": "string", "enum": [*map(str, Behaviour), NONE]}},
        "required": ["utterance", "code"],
        "additionalProperties": False,
    }
    answer = form("codes", codes={"type": "array", "items": entry})

    def asked(name: str, number: int, volley_utterances: list[str]) -> Question:
        start = max(0, number - 1 - CONTEXT)
        return question(
            study,
            f"the codes of volley {number} of {name}",
            "miti_code",
            answer,
            checked(lambda text: behaviours_of(text, len(volley_utterances))),
            entries=BEHAVIOURS,
            nothing=NONE,
            before=lines(transcripts[name][start : number - 1], start + 1),
            utterances=numbered(volley_utterances),
        )

    return {(name, number): asked(name, number, volley_utterances) for (name, number), volley_utterances in utterances.items()}


def rating(study: Study, transcripts: Transcripts) -> dict[str, Question]:
    """The third request: the globals of each transcript."""
    answer = form("globals", **{str(code): {"type": "integer", "enum": list(SCALE)} for code in Global})
    return {
        name: question(
            study,
            f"the globals of {name}",
            "miti_globals",
            answer,
            checked(ratings_of),
            entries=GLOBALS,
            transcript=lines(turns),
        )
        for name, turns in transcripts.items()
    }


def pieces_of(transcripts: Transcripts) -> dict[VolleyId, list[str]]:
    """The clauses of every counselor volley that says something."""
    return {
        (name, number): clauses(turns[number - 1].text)
        for name, turns in transcripts.items()
        for number in volleys(turns)
        if turns[number - 1].text.strip()
    }


def by_model(study: Study, name: str, transcripts: Transcripts) -> list[Coding]:
    """What the study's language model codes, as it is recorded for stage `name`; nothing where nothing is recorded.

    The second pass depends on the first one's answers, so it is recorded after it, into the same cassette.
    """
    pieces = pieces_of(transcripts)
    first, about_all = cutting(study, pieces), rating(study, transcripts)
    answers = [text_of(answer) for answer in ask.answers(study, name, [*first.values(), *about_all.values()])]
    if not answers:
        return []
    cuttings = dict(zip(first, answers[: len(first)], strict=True))
    utterances = {
        volley_id: utterances_of(cuttings[volley_id], volley_clauses) if volley_id in cuttings else volley_clauses
        for volley_id, volley_clauses in pieces.items()
    }
    second = coding(study, transcripts, utterances)
    coded = [text_of(answer) for answer in ask.answers(study, name, list(second.values()))]
    if second and not coded:
        raise ask.missing(study, name, list(second.values()))
    seen = {
        volley_id: volley(behaviours_of(answer, len(utterances[volley_id])))
        for volley_id, answer in zip(second, coded, strict=True)
    }
    ratings = dict(zip(about_all, map(ratings_of, answers[len(first) :]), strict=True))
    return [
        Coding(
            f"{MODEL}{study.llm.model}",
            packet,
            {number: seen.get((packet, number), frozenset()) for number in volleys(turns)},
            ratings[packet],
        )
        for packet, turns in transcripts.items()
    ]


def questions_about(study: Study, name: str, transcripts: Transcripts) -> list[Question]:
    """All requests of stage `name` about some transcripts; a volley whose cutting is not recorded counts as one utterance."""
    cassettes = ask.recorded(study, name)
    pieces = pieces_of(transcripts)
    first = cutting(study, pieces)
    answers = {volley_id: ask.recorded_answer(cassettes, asked) for volley_id, asked in first.items()}
    utterances = {
        volley_id: utterances_of(text_of(answer), volley_clauses)
        if (answer := answers.get(volley_id))
        else ["".join(volley_clauses)]
        for volley_id, volley_clauses in pieces.items()
    }
    return [*first.values(), *rating(study, transcripts).values(), *coding(study, transcripts, utterances).values()]


# The stage


def questions(study: Study) -> list[Question]:
    """The requests that the stage's coder makes; none where no model codes."""
    coder = registry.modules(registry.CODERS)[study.code.coder]
    return list(coder.questions(study)) if hasattr(coder, "questions") else []


def tables(codings: Sequence[Coding]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of `codes.csv` and of `globals.csv`, sorted; a coded volley without a behavior has one row, its code empty."""
    codes = [
        (coding.rater, coding.packet, number, code)
        for coding in codings
        for number, seen in coding.behaviours.items()
        for code in sorted(map(str, seen)) or [""]
    ]
    ratings = [(coding.rater, coding.packet, code, rating) for coding in codings for code, rating in coding.ratings.items()]
    return pd.DataFrame(sorted(codes), columns=CODES), pd.DataFrame(sorted(ratings), columns=RATINGS)


def read_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`codes.csv` and `globals.csv` as `tables` made them: names and codes are text, even `NA` and `007`."""
    names = {"rater": str, "packet": str, "code": str}
    codes = pd.read_csv(folder / "codes.csv", dtype=names | {"volley": int}, keep_default_na=False)
    return codes, pd.read_csv(folder / "globals.csv", dtype=names | {"rating": int}, keep_default_na=False)


def code(study: Study) -> None:
    """Have all packets coded; see the module."""
    folder, coder = study.path("blind", "packets"), registry.modules(registry.CODERS)[study.code.coder]
    with stage(study, "code", None, [folder, *(coder.inputs(study) if hasattr(coder, "inputs") else [])]) as out:
        transcripts = packets(folder)
        codings: list[Coding] = coder.code(study, transcripts)
        if not codings and hasattr(coder, "remedy"):
            print(f"code: nothing is coded; to get codes: {coder.remedy(study)}")
        for name, table in zip(("codes", "globals"), tables(codings), strict=True):
            storage.write_table(out / f"{name}.csv", table)
        numbers = {
            "packets": len(transcripts),
            "coded": len({coding.packet for coding in codings}),
            "raters": len({coding.rater for coding in codings}),
            "volleys": sum(len(coding.behaviours) for coding in codings),
            "behaviours": sum(len(seen) for coding in codings for seen in coding.behaviours.values()),
            "ratings": sum(len(coding.ratings) for coding in codings),
        }
        storage.write_json(out / "metrics.json", numbers)
