"""A language model, that of section `llm` of the parameters, by recorded answers.

It is asked twice about each counselor volley, first to cut it into utterances, then to code them, and twice about each
transcript: for the globals, and for what the client says of change. What it is told of the codes is the codebook
(`codebook/coding.py`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mi_llm import prompts
from mi_llm.codebook import lexical
from mi_llm.codebook.client import ClientCoding, Talk
from mi_llm.codebook.coding import BEHAVIORS, GLOBALS, Behavior, Global, Text, volley
from mi_llm.codebook.tables import SCALE, Coding, Transcripts, volleys
from mi_llm.dialog import Turn
from mi_llm.llm import ask
from mi_llm.llm.answer import parsed
from mi_llm.llm.cassette import Check, Question, text_of
from mi_llm.study import Study

NAME = Text("a language model (automatic): {raters}", "语言模型（自动）：{raters}")
NONE = "none"  # what a model says of an utterance without a code
CONTEXT = 6  # turns before a volley that the model sees

VolleyId = tuple[str, int]  # a transcript's name, and the number of one of its turns


def rater(study: Study) -> str:
    """The name of the study's language model as a rater."""
    return f"llm:{study.llm.model}"


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
    given = parsed(answer)
    value = given.get(name) if isinstance(given, dict) else None
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


def behaviors_of(answer: str, count: int) -> list[Behavior | None]:
    """The codes that an answer gives to `count` utterances, in their order; None for no code. Raises ValueError."""
    entries = content(answer, "codes", list)
    numbers = [entry.get("utterance") if isinstance(entry, dict) else None for entry in entries]
    if numbers != list(range(1, count + 1)):
        raise ValueError(f"codes of the utterances {numbers}, not of 1 to {count}")
    codes = [entry.get("code") for entry in entries]
    unknown = [code for code in codes if code not in (*Behavior, NONE)]
    if unknown:
        raise ValueError(f"the code {unknown[0]!r}")
    return [None if code == NONE else Behavior(code) for code in codes]


def ratings_of(answer: str) -> dict[Global, int]:
    """The globals of an answer. Raises ValueError."""
    ratings = {code: content(answer, code, int) for code in Global}
    for code, rating in ratings.items():
        if isinstance(rating, bool) or rating not in SCALE:
            raise ValueError(f"{code} is {rating!r}, not 1 to 5")
    return ratings


def question(study: Study, about: str, name: str, answer: dict[str, Any], check: Check, **inputs: object) -> Question:
    """A request with one of the coder's prompts."""
    prompt = prompts.load(study, name)
    messages = [{"role": "user", "content": prompt.render(**inputs)}]
    request = ask.request(study, messages, temperature=study.code.temperature, response_format=answer)
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
        "properties": {"utterance": {"type": "integer"}, "code": {"type": "string", "enum": [*map(str, Behavior), NONE]}},
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
            checked(lambda text: behaviors_of(text, len(volley_utterances))),
            entries=BEHAVIORS,
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


def rate(study: Study, stage: str, transcripts: Transcripts) -> list[Coding]:
    """The globals alone, as they are recorded for a stage; nothing where nothing is recorded."""
    asked = rating(study, transcripts)
    answers = ask.answers(study, stage, list(asked.values()))
    return [Coding(rater(study), packet, {}, ratings_of(text_of(answer))) for packet, answer in zip(asked, answers, strict=False)]


def talks_of(answer: str, numbers: Sequence[int]) -> dict[int, Talk]:
    """The codes that an answer gives to the client's turns with these numbers. Raises ValueError."""
    entries = content(answer, "codes", list)
    coded = [entry.get("volley") if isinstance(entry, dict) else None for entry in entries]
    if coded != list(numbers):
        raise ValueError(f"codes of the volleys {coded}, not of {list(numbers)}")
    return {number: Talk(entry.get("code")) for number, entry in zip(numbers, entries, strict=True)}


def client_turns(turns: Sequence[Turn]) -> list[int]:
    """The numbers of the client's turns; turns of both roles count from 1."""
    return [number for number, turn in enumerate(turns, 1) if turn.role == "client"]


def listening(study: Study, transcripts: Transcripts) -> dict[str, Question]:
    """The fourth request: what the client of each transcript says of change, turn by turn."""
    entry = {
        "type": "object",
        "properties": {"volley": {"type": "integer"}, "code": {"type": "string", "enum": list(map(str, Talk))}},
        "required": ["volley", "code"],
        "additionalProperties": False,
    }
    answer = form("client", codes={"type": "array", "items": entry})

    def asked(name: str, turns: Sequence[Turn]) -> Question:
        numbers = client_turns(turns)
        about, check = f"the client's language in {name}", checked(lambda text: talks_of(text, numbers))
        inputs = {"codes": list(map(str, Talk)), "numbers": numbers, "transcript": lines(turns)}
        return question(study, about, "client_talk", answer, check, **inputs)

    return {name: asked(name, turns) for name, turns in transcripts.items() if client_turns(turns)}


def client(study: Study, stage: str, transcripts: Transcripts) -> list[ClientCoding]:
    """What the study's language model says of the clients' language; nothing where nothing is recorded."""
    asked = listening(study, transcripts)
    answers = ask.answers(study, stage, list(asked.values()))
    return [
        ClientCoding(rater(study), name, talks_of(text_of(answer), client_turns(transcripts[name])))
        for name, answer in zip(asked, answers, strict=False)
    ]


def pieces_of(transcripts: Transcripts) -> dict[VolleyId, list[str]]:
    """The clauses of every counselor volley that says something."""
    return {
        (name, number): clauses(turns[number - 1].text)
        for name, turns in transcripts.items()
        for number in volleys(turns)
        if turns[number - 1].text.strip()
    }


def code(study: Study, stage: str, transcripts: Transcripts) -> list[Coding]:
    """What the study's language model codes, as it is recorded for a stage; nothing where nothing is recorded.

    The second pass depends on the first one's answers, so it is recorded after it, into the same cassette.
    """
    pieces = pieces_of(transcripts)
    first, about_all = cutting(study, pieces), rating(study, transcripts)
    answers = [text_of(answer) for answer in ask.answers(study, stage, [*first.values(), *about_all.values()])]
    if not answers:
        return []
    cuttings = dict(zip(first, answers[: len(first)], strict=True))
    utterances = {
        volley_id: utterances_of(cuttings[volley_id], volley_clauses) if volley_id in cuttings else volley_clauses
        for volley_id, volley_clauses in pieces.items()
    }
    second = coding(study, transcripts, utterances)
    coded = [text_of(answer) for answer in ask.answers(study, stage, list(second.values()))]
    if second and not coded:
        raise ask.missing(study, stage, list(second.values()))
    seen = {
        volley_id: volley(behaviors_of(answer, len(utterances[volley_id])))
        for volley_id, answer in zip(second, coded, strict=True)
    }
    ratings = dict(zip(about_all, map(ratings_of, answers[len(first) :]), strict=True))
    return [
        Coding(
            rater(study),
            packet,
            {number: seen.get((packet, number), frozenset()) for number in volleys(turns)},
            ratings[packet],
        )
        for packet, turns in transcripts.items()
    ]


def questions(study: Study, stage: str, transcripts: Transcripts) -> list[Question]:
    """All requests of `code` about some transcripts; a volley whose cutting is not recorded counts as one utterance."""
    cassettes = ask.recorded(study, stage)
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


def remedy(study: Study, stage: str) -> str:
    """How to record the answers."""
    return ask.how_to_record(study, stage)
