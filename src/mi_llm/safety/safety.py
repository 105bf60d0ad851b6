"""Stage `safety@model`: how base and tuned model act when a client is in danger, without and with the chat's guard in front.

The paper did not look at this. Clients of graded danger (`safety.personas`) talk with both arms, by script or played by a
language model. Each talk is graded by dimensions (`checklist.py`): by a deterministic checklist, and by a judging language model
in recorded answers. Reads the checkpoint, the adapter and the clients. Writes `safety/<model>/`: `base.jsonl` and `tuned.jsonl`
(the talks as the client saw them, their grades in `meta`), `safety.csv` (how many talks got which grade), `guard.csv` (what the
guard did in how many), `validation.csv` (agreement with the grades that a person gave the replies of `labeled.yaml`, and with the
marks of `marked.yaml`) and, where a language model plays the clients or judges, `cassette.jsonl`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from mi_llm import storage
from mi_llm.dialog import Dialog, Round, Turn
from mi_llm.engine.counselor import Counselor, adapters, counselors, forget
from mi_llm.engine.load import checkpoint, prepare_torch
from mi_llm.language import language
from mi_llm.llm import ask
from mi_llm.llm.cassette import Question, text_of
from mi_llm.llm.record import count_tokens
from mi_llm.miti.coder import llm
from mi_llm.miti.reliability import estimate, kappas
from mi_llm.miti.simulate import VOLLEY, client_question
from mi_llm.problem import Problem
from mi_llm.safety import judge
from mi_llm.safety.checklist import (
    BEST_FIRST,
    DIMENSIONS,
    FAULTY,
    GRAVE,
    NAMES,
    RISKS,
    WITH,
    WITHOUT,
    Faults,
    Grades,
    dimensions,
    faulty,
    graded,
    graded_talk,
)
from mi_llm.safety.personas import Persona, Script, personas
from mi_llm.stage import stage, write_arms
from mi_llm.statistics import share_interval
from mi_llm.study import Study

CHECKLIST = "checklist"
SAFETY = ["source", "arm", "guard", "risk", "rater", "dimension", "grade", "n", "count", "share", "lo", "hi"]
GUARDED = ["source", "arm", "risk", "n", "answered", "share", "lo", "hi", "first_message", "helped", "withheld"]
VALIDATION = ["rater", "dimension", "kappa", "lo", "hi", "n", "note"]
NOT_GRADED = "no person has graded replies in this language"


@dataclass(frozen=True)
class Guard:
    """The chat's guard: functions that give the text that it puts somewhere, or None, and what it finds wrong with a reply.

    The last argument of those that give a text is its language.
    """

    answer: Callable[[Sequence[str], str], str | None]  # a client's messages so far -> in place of a reply: the danger is plain
    under: Callable[[Sequence[str], str], str | None]  # the same -> under the reply: danger is possible
    instead: Callable[[str, str], str | None]  # a reply -> in its place: it must not be shown
    faults: Faults


@dataclass
class Meeting:
    """A talk under way: all that the client saw, what of it the model was given, and in which rounds the guard did what.

    The guard answered (`guarded`), put help lines under a reply (`helped`), or withheld a reply (`withheld`).
    """

    id: str
    persona: Persona
    guard: Guard | None
    script: Script | None
    turns: list[Turn] = field(default_factory=list)
    given: list[Turn] = field(default_factory=list)
    guarded: list[int] = field(default_factory=list)
    helped: list[int] = field(default_factory=list)
    withheld: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def heard(self) -> list[str]:
        """The client's messages."""
        return [turn.text for turn in self.turns if turn.role == "client"]

    def reply(self, text: str, language: str) -> None:
        """Take the model's reply to the client's last message, as the guard lets the client see it, in this language.

        As in the chat, the model is later given neither a round whose reply was withheld nor the help lines.
        """
        note = self.guard.instead(text, language) if self.guard else None
        lines = self.guard.under(self.heard, language) if self.guard else None
        if note is None:
            self.given += [self.turns[-1], Turn(role="counselor", text=text)]
        else:
            self.withheld.append(len(self.heard))
        if lines is not None:
            self.helped.append(len(self.heard))
        seen = [text if note is None else note, *([] if lines is None else [lines])]
        self.turns.append(Turn(role="counselor", text="\n".join(seen)))

    def dialog(self, model: str, arm: str, client: str) -> Dialog:
        """The talk as a dialog of the study."""
        about = {"arm": arm, "persona": self.persona.id, "risk": self.persona.risk, "client": client}
        guard: dict[str, Any] = {"guard": WITH if self.guard else WITHOUT}
        guard |= {"guarded": self.guarded, "helped": self.helped, "withheld": self.withheld}
        return Dialog(id=self.id, source=model, turns=tuple(self.turns), meta=about | guard)


def client_questions(study: Study, meetings: Sequence[Meeting]) -> list[Question]:
    """What a language model that plays the clients is asked."""
    temperature = study.safety.temperature
    return [
        client_question(
            study, meeting.persona.id, "persona", {"persona": meeting.persona}, meeting.turns, temperature=temperature
        )
        for meeting in meetings
    ]


def let_clients_speak(study: Study, model: str, meetings: Sequence[Meeting]) -> None:
    """Let each client say the next volley, by the script or by recorded answers; who has no more to say has ended."""
    if study.safety.client == "scripted":
        for meeting in meetings:
            assert meeting.script is not None
            line = meeting.script.say(meeting.turns)
            meeting.ended = line is None
            if line is not None:
                meeting.turns.append(Turn(role="client", text=line))
        return
    name, asked = f"safety/{model}", client_questions(study, meetings)
    farewell = language.load(study.language).farewell
    answers = ask.answers(study, name, asked)
    if not answers:
        raise ask.missing(study, name, asked)
    for meeting, answer in zip(meetings, answers, strict=True):
        text = text_of(answer)
        meeting.ended = farewell in text  # the counselor has the last word
        meeting.turns.append(Turn(role="client", text=text.replace(farewell, "").strip()))


def converse(study: Study, model: str, counselor: Counselor, clients: Sequence[Persona], guard: Guard) -> list[Dialog]:
    """All talks of one arm, side by side, each client without and with the guard, until `safety.rounds` are over."""
    options, arm = study.safety, counselor.arm
    meetings = [
        Meeting(
            f"{model}-{arm}-{persona.id}{'-guarded' if in_front else ''}",
            persona,
            in_front,
            Script(persona, study.language) if options.client == "scripted" else None,
        )
        for in_front in (None, guard)
        for persona in clients
    ]
    for number in tqdm(range(1, options.rounds + 1), desc=f"safety {model} {arm}", unit="round"):
        going = [meeting for meeting in meetings if not meeting.ended]
        if going:
            let_clients_speak(study, model, going)
        waiting = []
        for meeting in going:
            if not meeting.turns or meeting.turns[-1].role != "client":
                continue
            answer = meeting.guard.answer(meeting.heard, study.language) if meeting.guard else None
            if answer is None:
                waiting.append(meeting)
            else:
                meeting.guarded.append(number)
                meeting.turns.append(Turn(role="counselor", text=answer))
        rounds = [
            Round(
                id=f"{meeting.id}#{number}",
                dialog=meeting.id,
                number=number,
                history=tuple(meeting.given),
                client=meeting.turns[-1].text,
                counselor="",
            )
            for meeting in waiting
        ]
        for meeting, reply in zip(waiting, counselor.replies(rounds) if rounds else [], strict=True):
            meeting.reply(reply, study.language)
    return [meeting.dialog(model, arm, options.client) for meeting in meetings]


def by_reply(talk: Dialog, faults: Faults, code: str) -> list[Grades]:
    """The checklist's grades of each reply of a talk; the guard's own words, a person's, have no faults."""
    of_guard = {*talk.meta["guarded"], *talk.meta["withheld"]}
    replies = [turn.text for turn in talk.turns if turn.role == "counselor"]
    return [graded(text, () if number in of_guard else faults(text), code) for number, text in enumerate(replies, 1)]


def with_grades(study: Study, model: str, talks: Sequence[Dialog], faults: Faults) -> list[Dialog]:
    """The talks with each rater's grades in `meta`: the checklist's, and the judge's where its answers are recorded."""
    risks = [talk.meta["risk"] for talk in talks]
    code = study.language
    grades = [{CHECKLIST: graded_talk(by_reply(talk, faults, code), risk)} for talk, risk in zip(talks, risks, strict=True)]
    questions = [judge.question(study, f"talk {talk.id}", talk.turns, risk) for talk, risk in zip(talks, risks, strict=True)]
    answers = ask.answers(study, f"safety/{model}", questions) if answerable(study, model) else []
    for by_rater, risk, answer in zip(grades, risks, answers, strict=False):
        by_rater[llm.rater(study)] = judge.grades_of(text_of(answer), dimensions(risk))
    return [
        talk.model_copy(update={"meta": {**talk.meta, "grades": by_rater}}) for talk, by_rater in zip(talks, grades, strict=True)
    ]


@dataclass(frozen=True)
class Labeled:
    """A reply to a client in danger, and the grades that a person gave it."""

    client: str
    reply: str
    grades: Grades

    @property
    def turns(self) -> tuple[Turn, Turn]:
        """The reply as a talk of one round."""
        return Turn(role="client", text=self.client), Turn(role="counselor", text=self.reply)


def labeled(code: str) -> list[Labeled]:
    """The replies in a language that a person graded; perhaps none."""
    letters = {name[0]: grade for name, grade in NAMES.items()}
    entries = language.load(code).read("labeled.yaml")
    return [
        Labeled(
            entry["client"],
            entry["reply"],
            {name: letters[letter] for name, letter in zip(DIMENSIONS, entry["grades"].split(), strict=True)},
        )
        for entry in entries
    ]


def judged(study: Study) -> list[Question]:
    """What the judge is asked about the replies that a person graded."""
    replies = enumerate(labeled(study.language), 1)
    return [judge.question(study, f"graded reply {number}", reply.turns, "high") for number, reply in replies]


def validation(study: Study, model: str, faults: Faults) -> pd.DataFrame:
    """How far each rater agrees with the person on the graded replies: columns `VALIDATION`.

    Cohen's kappa by dimension, three grades without an order; the interval is over the clients' messages, which have several
    replies each. A judge without recorded answers, and the author's sample answers, have no kappa, and neither has anybody in
    a language in which no person has graded replies. Of the checklist also whether it finds a reply `FAULTY`, on replies of
    another writer that answer no client's message.
    """
    replies, code = labeled(study.language), study.language
    if not replies:
        raters = (CHECKLIST, llm.rater(study))
        rows = [{"rater": rater, "dimension": name, "n": 0, "note": NOT_GRADED} for rater in raters for name in DIMENSIONS]
        return pd.DataFrame(rows, columns=VALIDATION)
    rows = agreement(study, CHECKLIST, replies, [graded(reply.reply, faults(reply.reply), code) for reply in replies])
    rows.append(agreement_on_marked(study, faults))
    author = study.llm.model == ask.AUTHOR
    answers = [] if author or not answerable(study, model) else ask.answers(study, f"safety/{model}", judged(study))
    if answers:
        given = [judge.grades_of(text_of(answer), tuple(DIMENSIONS)) for answer in answers]
        rows += agreement(study, llm.rater(study), replies, given)
    else:
        note = ask.OF_AUTHOR if author and answerable(study, model) else ask.NOT_RECORDED
        rows += [{"rater": llm.rater(study), "dimension": name, "n": 0, "note": note} for name in DIMENSIONS]
    return pd.DataFrame(rows, columns=VALIDATION)


def agreement(study: Study, rater: str, replies: Sequence[Labeled], given: Sequence[Grades]) -> list[dict[str, Any]]:
    """Kappa of a rater's grades with the person's, by dimension."""
    clients = list(dict.fromkeys(reply.client for reply in replies))
    rows = []
    for name in DIMENSIONS:
        tables = np.zeros((len(clients), len(BEST_FIRST), len(BEST_FIRST)))
        for reply, grades in zip(replies, given, strict=True):
            tables[clients.index(reply.client), BEST_FIRST.index(reply.grades[name]), BEST_FIRST.index(grades[name])] += 1
        kappa = estimate(tables, kappas, study.score.confidence, least=-1)
        rows.append(
            {"rater": rater, "dimension": name, "kappa": kappa.value, "lo": kappa.lo, "hi": kappa.hi}
            | {"n": len(replies), "note": kappa.note}
        )
    return rows


def agreement_on_marked(study: Study, faults: Faults) -> dict[str, Any]:
    """Kappa of the checklist with the writer who marked single replies as bad or good (`marked.yaml`); interval over replies."""
    content = language.load(study.language).read("marked.yaml")
    marked = [(reply, mark == "bad") for mark, replies in content.items() for reply in replies]
    tables = np.zeros((len(marked), 2, 2))
    for table, (reply, bad) in zip(tables, marked, strict=True):
        table[int(bad), int(faulty(graded(reply, faults(reply), study.language)))] = 1
    kappa = estimate(tables, kappas, study.score.confidence, least=-1)
    row = {"rater": CHECKLIST, "dimension": FAULTY, "kappa": kappa.value, "lo": kappa.lo, "hi": kappa.hi}
    return row | {"n": len(marked), "note": kappa.note}


def share(count: int, n: int, confidence: float) -> dict[str, float]:
    """A share of talks with its exact interval, which does not shrink to nothing where all talks are alike."""
    lo, hi = share_interval(count, n, confidence)
    return {"share": count / n, "lo": lo, "hi": hi}


def outcome(study: Study, talks: Sequence[Dialog]) -> pd.DataFrame:
    """How many talks of each arm, guard and risk got which grade on each dimension, by rater: columns `SAFETY`.

    High and imminent risk have rows of their own and, as `GRAVE`, together.
    """
    rows = []
    grave = [talk for talk in talks if talk.meta["risk"] in ("high", "imminent")]
    pooled = [talk.model_copy(update={"meta": {**talk.meta, "risk": GRAVE}}) for talk in grave]
    for (arm, guard, risk), group in grouped([*pooled, *talks], "arm", "guard", "risk").items():
        for rater in group[0].meta["grades"]:
            for dimension in dimensions(risk):
                grades = [talk.meta["grades"][rater][dimension] for talk in group]
                for grade in BEST_FIRST:
                    count, n = grades.count(grade), len(grades)
                    head = {"source": group[0].source, "arm": arm, "guard": guard, "risk": risk, "rater": rater}
                    rows.append(
                        head
                        | {"dimension": dimension, "grade": str(grade), "n": n, "count": count}
                        | share(count, n, study.score.confidence)
                    )
    return pd.DataFrame(rows, columns=SAFETY)


def guarded(study: Study, talks: Sequence[Dialog]) -> pd.DataFrame:
    """In how many talks the guard answered at least once, and at which message first (median), by arm and risk: `GUARDED`.

    `helped`, `withheld`: in how many it put help lines under a reply, or withheld one, at least once.
    """
    rows = []
    for (arm, risk), group in grouped([talk for talk in talks if talk.meta["guard"] == WITH], "arm", "risk").items():
        first = [talk.meta["guarded"][0] for talk in group if talk.meta["guarded"]]
        rows.append(
            {"source": group[0].source, "arm": arm, "risk": risk, "n": len(group), "answered": len(first)}
            | share(len(first), len(group), study.score.confidence)
            | {"first_message": median(first) if first else None}
            | {name: sum(bool(talk.meta[name]) for talk in group) for name in ("helped", "withheld")}
        )
    return pd.DataFrame(rows, columns=GUARDED)


def grouped(talks: Sequence[Dialog], *keys: str) -> Mapping[tuple[Any, ...], list[Dialog]]:
    """Talks by some of what their `meta` says, in the order of the talks; risks in theirs."""
    groups: dict[tuple[Any, ...], list[Dialog]] = {}
    for talk in sorted(talks, key=lambda talk: (*RISKS, GRAVE).index(talk.meta["risk"])):
        groups.setdefault(tuple(talk.meta[key] for key in keys), []).append(talk)
    return groups


def workload(study: Study, model: str) -> ask.Workload:
    """An upper bound of what one model's talks request: each volley of clients that a language model plays, and the judge."""
    options, arms = study.safety, len(study.arms(model))
    clients = personas(Path(options.personas))
    talks = [Meeting(persona.id, persona, None, None) for persona in clients]
    played = client_questions(study, talks) if options.client == "llm" else []
    on_talks = [judge.question(study, talk.id, [], talk.persona.risk) for talk in talks]
    on_replies = [] if study.llm.model == ask.AUTHOR else judged(study)

    def tokens(questions: Sequence[Question]) -> int:
        messages = [message for asked in questions for message in asked.request["messages"]]
        return sum(count_tokens(study.llm.model, message["content"]) for message in messages)

    both = 2 * arms  # without and with the guard
    history = both * len(talks) * VOLLEY * options.rounds
    sent = both * (tokens(played) * options.rounds + tokens(on_talks)) + tokens(on_replies)
    sent += history * (options.rounds - 1) * bool(played) + 2 * history
    count = both * (len(played) * options.rounds + len(on_talks)) + len(on_replies)
    return ask.Workload(
        requests=f"at most {count}: {both * len(talks)} talks of {options.rounds} rounds, and {len(on_replies)} graded replies",
        count=count,
        sent=sent,
        answered=count * VOLLEY,
        assumed=f"no talk ends early and a volley has {VOLLEY} tokens",
    )


def answerable(study: Study, model: str) -> bool:
    """Whether a language model has answered in one model's talks, or may be asked now."""
    return study.llm.mode != "replay" or any(cassette.good for cassette in ask.recorded(study, f"safety/{model}"))


def safety(study: Study, model: str, guard: Guard) -> None:
    """Let clients in danger talk with both arms of a model, and grade what it does; see the module."""
    prepare_torch(study)
    options = study.safety
    inputs = [Path(study.finetune.instruction), Path(options.personas)]
    if study.respond.engine == "local":
        inputs += [checkpoint(study, model), *adapters(study, model)]
    with stage(study, "safety", model, inputs) as out:
        clients = personas(Path(options.personas))
        if options.client == "scripted" and (silent := [persona.id for persona in clients if not persona.lines]):
            found = f"no lines of {', '.join(silent)}"
            raise Problem(options.personas, found, "lines for scripted clients", "add them, or set safety.client to llm")
        talks: list[Dialog] = []
        if options.client == "llm" and not answerable(study, model):  # then no model has to be loaded
            print(f"safety@{model}: no talks are recorded; to record: {ask.how_to_record(study, f'safety/{model}')}")
        else:
            for counselor in counselors(study, model, "safety"):
                talks += converse(study, model, counselor, clients, guard)
        write(study, model, out, with_grades(study, model, talks, guard.faults), guard.faults)
        forget(out.parent, model)


def write(study: Study, model: str, out: Path, talks: Sequence[Dialog], faults: Faults) -> None:
    """Write the talks of a model and the tables made of them."""
    write_arms(out, {arm: [talk.model_dump() for talk in talks if talk.meta["arm"] == arm] for arm in study.arms(model)})
    tables = {"safety": outcome(study, talks), "guard": guarded(study, talks), "validation": validation(study, model, faults)}
    for name, table in tables.items():
        storage.write_table(out / f"{name}.csv", table.round(4))
    kappa = tables["validation"].dropna(subset=["kappa"])
    numbers = {
        "talks": len(talks),
        "guard_answered": int(tables["guard"]["answered"].sum()),
        "kappa": {
            rater: dict(zip(rows["dimension"], rows["kappa"].round(4), strict=True)) for rater, rows in kappa.groupby("rater")
        },
    }
    storage.write_json(out / "metrics.json", numbers)
