"""The one way to ask external language models: questions in, recorded answers out.

`replay` looks answers up, in the stage's own cassette and in the shipped one; `record` asks for those that are missing; `batch`
does so through the OpenAI Batch API; `live` requests all of them again. Whatever comes is recorded.

What records is imported where it is used: its client takes half a second to import, which a stage that replays need not wait.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mi_llm.llm.cassette import Cassette, Question, Record, Request
from mi_llm.problem import Problem
from mi_llm.study import Llm, Study

AUTHOR = "bundle-author"  # as `llm.model`: sample answers that the bundle's author wrote, so no agreement is computed of them
NOT_RECORDED, OF_AUTHOR = "not recorded", "sample answers by the bundle's author"  # why there is none


@dataclass(frozen=True)
class Workload:
    """What a stage would request: the requests without a recorded answer, in words (`requests`) and counted, and their tokens.

    `sent` and `answered` are tokens; `answered` rests on the assumption that `assumed` states.
    """

    requests: str
    count: int
    sent: int
    answered: int
    assumed: str


def request(study: Study, messages: Sequence[Mapping[str, str]], **settings: object) -> Request:
    """A request to the study's language model, with the settings that `llm.extra_body` adds and without those it leaves out."""
    body = {"model": study.llm.model, "messages": list(messages), **settings, **study.llm.extra_body}
    return {name: value for name, value in body.items() if value is not None}


def workload(study: Study, name: str, questions: Sequence[Question]) -> Workload:
    """What a stage with these questions would ask."""
    from mi_llm.llm.record import count_tokens

    cassettes, asked = recorded(study, name), distinct(questions)
    unanswered = [question for question in asked if study.llm.mode == "live" or recorded_answer(cassettes, question) is None]
    model = study.llm.model
    tokens = sum(count_tokens(model, message["content"]) for question in unanswered for message in question.request["messages"])
    known, same = len(asked) - len(unanswered), len(questions) - len(asked)
    requests = f"{len(unanswered)} of {len(questions)} ({known} are recorded, {same} are the same as another)"
    return Workload(requests, len(unanswered), tokens, tokens, "answers are as long as their prompts")


def forecast(options: Llm, work: Workload) -> str:
    """What asking would take, in words: requests, tokens, cost in US dollars."""
    from mi_llm.llm.record import cost, encoding_of

    how = "" if encoding_of(options.model) else ", counted as one token per character: tiktoken has no table for this model"
    price = options.prices.get(options.model)
    if price is None:
        money = f"unknown: {options.model} has no entry in llm.prices"
    else:
        share = options.batch_discount if options.mode == "batch" else 1.0
        money = f"about {cost(price, work.sent, work.answered) * share:.2f} US dollars, if {work.assumed}"
    return (
        f"  model     {options.model} at {options.base_url}\n"
        f"  requests  {work.requests}\n"
        f"  tokens    {work.sent} to be sent{how}\n"
        f"  cost      {money}; budget {options.budget.usd:g}\n"
    )


def consent(study: Study, name: str, work: Workload, *, yes: bool) -> None:
    """Show what the stage would request and have a person agree, once; raises Problem if nobody does.

    Under DVC and with `--yes` the parameters' budget is the agreement. Where all requests are known and recorded nobody is asked.
    """
    if not work.count:
        return
    print(f"{name}: answers to be recorded\n{forecast(study.llm, work)}", file=sys.stderr)
    if yes or "DVC_STAGE" in os.environ:
        return
    if not sys.stdin.isatty():
        raise Problem(f"mi-llm {name}", "no terminal to ask at", "a person's consent before money is spent", "add --yes")
    if input("Send these requests? [y/N] ").strip().lower() != "y":
        raise Problem(f"mi-llm {name}", "not agreed", "y", "nothing was sent; run the command again to record")


def shipped(name: str) -> Path:
    """The cassette of a stage that came with the bundle."""
    return Path("data/cassettes") / f"{name}.jsonl"


def recorded(study: Study, name: str) -> list[Cassette]:
    """The cassettes in which a stage looks for answers: its own, then the shipped one."""
    return [Cassette.open(path) for path in (study.path(name, "cassette.jsonl"), shipped(name)) if path.exists()]


def recorded_answer(cassettes: Sequence[Cassette], asked: Question) -> Record | None:
    """The recorded good answer to a question, or None."""
    return next((cassette.good[asked.key] for cassette in cassettes if asked.key in cassette.good), None)


def distinct(questions: Sequence[Question]) -> list[Question]:
    """The questions without duplicates: two dialogs with the same words need one answer."""
    return list({asked.key: asked for asked in questions}.values())


def answers(study: Study, name: str, questions: Sequence[Question]) -> list[Record]:
    """The answers to a stage's questions, in their order, after recording those that the mode asks for.

    Whoever calls this with a mode other than `replay` has a person's agreement (`consent`).

    The stage's own cassette, `<out>/<name>/cassette.jsonl`, then holds all of them. An empty list means that nothing at all is
    recorded for the stage, and then nothing is written. Raises Problem if some are recorded and others are not, or if recording
    failed.
    """
    options = study.llm
    if options.mode == "replay" and not any(path.exists() for path in (study.path(name, "cassette.jsonl"), shipped(name))):
        return []
    own = Cassette(study.path(name, "cassette.jsonl"))
    shipped_cassettes = [Cassette.open(shipped(name))] if shipped(name).exists() else []
    with own.recording():
        known = [recorded_answer([own, *shipped_cassettes], asked) for asked in questions]
        copied = {id(record): record for record in known if record is not None and record["key"] not in own.good}
        if copied:
            own.append(list(copied.values()))
        unanswered = [asked for asked in distinct(questions) if options.mode == "live" or asked.key not in own.good]
        if options.mode != "replay" and unanswered:
            from mi_llm.llm import batch, record

            ask = batch.record if options.mode == "batch" else record.record
            ask(options, unanswered, own, name)
            unanswered = []
    if unanswered and any(asked.key in own.good for asked in questions):
        raise missing(study, name, unanswered)
    return [] if unanswered else [own.good[asked.key] for asked in questions]


def how_to_record(study: Study, name: str) -> str:
    """The command that records a stage's answers; for one model's, `name` is `stage/model`."""
    return f"OPENAI_API_KEY=… mi-llm {name.replace('/', ' ')} --study {study.params} --mode record"


def missing(study: Study, name: str, unanswered: Sequence[Question]) -> Problem:
    """The error for questions without a recorded answer."""
    first, rest = unanswered[0], len(unanswered) - 1
    return Problem(
        f"{study.path(name, 'cassette.jsonl')}, {shipped(name)}",
        f"no recorded answer of {first.request['model']} for {first.about} (key {first.key[:12]}…)"
        + (f" and {rest} others" if rest else ""),
        "a recorded answer for exactly this request: text, model, and settings",
        f"undo the change of prompt, model, or corpus, or record: {how_to_record(study, name)}",
    )
