"""Stage `simulate@model`: standardized clients talk with the base and the tuned model (paper, Methods, Manual Evaluation).

The paper's researchers talked with the tuned models only; here both arms meet the same clients, so that there is an untuned
control. Reads the checkpoint, the adapter and the profiles (`clients.py`). Writes `simulate/<model>/base.jsonl`, `tuned.jsonl`
(one dialog a client) and, where a language model plays the clients, its answers in `cassette.jsonl`. Talks that people had with
the models are read from `simulate.folder` instead.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mi_llm import prompts, storage
from mi_llm.construct import llm
from mi_llm.construct.cassette import Question, text_of
from mi_llm.construct.record import count_tokens, record
from mi_llm.dialog import Dialog, Round, Turn, features, read_dialogs, write_dialogs
from mi_llm.miti.clients import Profile, Scripted, bundled, outlined
from mi_llm.models.base import chat_format, checkpoint, prepare_torch
from mi_llm.models.branching import Branching, greedy
from mi_llm.models.respond import (
    acting_as,
    adapters,
    answer_of,
    chats,
    enough_memory,
    forget,
    plans,
    questions,
    sampler,
    served_name,
    unfinished,
    with_adapter,
)
from mi_llm.models.template import prompt
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import ARMS, Study

ENDING = "[告别]"
START = "（咨询开始，请你先说。）"
VOLLEY = 53  # tokens of a volley, for estimates: the longest mean of a counselor's in the paper's Table 4, in characters
Counselor = Callable[[Sequence[Round]], list[str]]  # the last client volleys, with their histories: the replies


@dataclass
class Talk:
    """A talk under way: who the client is, what was said, and how it ended, if it has."""

    profile: Profile
    script: Scripted | None = None
    turns: list[Turn] = field(default_factory=list)
    ended: str = ""


def profiles(study: Study) -> list[Profile]:
    """The clients of the study: so many of the bundle's or of the authors', drawn by the seed, in their order."""
    options = study.simulate
    known = bundled()[0] if options.profiles == "bundle" else outlined(study.folder / "read" / "release" / "outlines.json")
    if options.dialogs > len(known):
        found = f"{options.dialogs}, but there are {len(known)} profiles"
        raise Problem(f"{study.params}: simulate.dialogs", found, "at most one dialog a profile and arm", "lower it")
    return sorted(random.Random(study.seed_of("simulate")).sample(known, options.dialogs), key=known.index)


def waiting_round(talk: Talk, name: str) -> Round:
    """The client volley that waits for a reply, with its history."""
    number = (len(talk.turns) + 1) // 2
    *history, last = talk.turns
    return Round(id=f"{name}#{number}", dialog=name, number=number, history=tuple(history), client=last.text, counselor="")


@contextmanager
def local_counselors(study: Study, model: str) -> Iterator[dict[str, Counselor]]:
    """A model's arms as counselors, from one loaded base; greedy, or sampled with a seed for each volley, as `respond` has it."""
    options, form = study.respond, chat_format(study, model)
    tuned, tokenizer = with_adapter(study, model)

    def counselor(arm: str) -> Counselor:
        def replies(rounds: Sequence[Round]) -> list[str]:
            asked = [prompt(tokenizer, form, chat) for chat in chats(rounds, study)]
            most = options.max_new_tokens
            choose = greedy if options.decoding == "greedy" else sampler(options.sampling, rounds, study, arm, most)
            branching = Branching(tuned, form.stop_ids(tokenizer), options.batch, most, choose)
            with enough_memory(f"simulate {model}", options.batch), acting_as(arm, tuned):
                said = {place: ids for place, ids, _ in branching.answers(plans(rounds, asked, {}))}
            return [tokenizer.decode(said[place], skip_special_tokens=True).strip() for place in range(len(rounds))]

        return replies

    yield {arm: counselor(arm) for arm in study.arms(model)}


@contextmanager
def served_counselors(study: Study, model: str) -> Iterator[dict[str, Counselor]]:
    """A model's arms from a model server; replies are kept until the talks are written, so that an interrupted run goes on."""

    def counselor(arm: str) -> Counselor:
        options = study.llm.model_copy(update={"base_url": study.respond.server, "model": served_name(model, arm)})
        cassette = unfinished(study, study.folder / "simulate", model, arm)

        def replies(rounds: Sequence[Round]) -> list[str]:
            asked = questions(study, rounds, model, arm)
            with cassette.recording():
                wanted = {one.key: one for one in asked if one.key not in cassette.good}
                if wanted:
                    record(options, list(wanted.values()), cassette, f"simulate {model} {arm}")
            return [answer_of(sample, cassette.good[one.key])["text"] for sample, one in zip(rounds, asked, strict=True)]

        return replies

    yield {arm: counselor(arm) for arm in study.arms(model)}


def says_something(answer: str) -> str | None:
    """The check of a client's answer."""
    return None if answer.replace(ENDING, "").strip() else "only the end mark"


def client_questions(study: Study, talks: Sequence[Talk]) -> list[Question]:
    """What a language model that plays the clients is asked: the talk so far, seen from the client's chair."""
    prompt_file = prompts.bundled("client")
    found = []
    for talk in talks:
        instruction = prompt_file.render(talk.turns, profile=talk.profile, ending=ENDING)
        heard = [{"role": "assistant" if turn.role == "client" else "user", "content": turn.text or "……"} for turn in talk.turns]
        request: dict[str, Any] = {
            "model": study.llm.model,
            "messages": [{"role": "system", "content": instruction}, {"role": "user", "content": START}, *heard],
            "temperature": study.simulate.temperature,
        }
        found.append(Question(f"client {talk.profile.id}", request, prompt_file.provenance, check=says_something))
    return found


def workload(study: Study, model: str) -> llm.Workload:
    """The most that the clients of one model's talks would be asked: each talk of both arms with all its rounds."""
    options = study.simulate
    if options.client != "llm":
        return llm.Workload("none: the clients are not played by a language model", 0, 0, 0, "nothing is requested")
    arms = len(study.arms(model))
    talks = arms * options.dialogs
    opening = client_questions(study, [Talk(profile) for profile in profiles(study)])
    told = [count_tokens(study.llm.model, message["content"]) for asked in opening for message in asked.request["messages"]]
    history = options.dialogs * VOLLEY * options.rounds * (options.rounds - 1)  # 2 volleys more in each further round
    count = talks * options.rounds
    return llm.Workload(
        requests=f"at most {count}: {talks} talks of {options.rounds} rounds; recorded answers are not requested again",
        count=count,
        sent=arms * (sum(told) * options.rounds + history),
        answered=count * VOLLEY,
        assumed=f"no dialog ends early and a volley has {VOLLEY} tokens",
    )


def ask_clients(study: Study, model: str, talks: Sequence[Talk]) -> bool:
    """Let a language model say the next volley of each talk; False if nothing at all is recorded for the stage."""
    name = f"simulate/{model}"
    asked = client_questions(study, talks)
    answers = llm.answers(study, name, asked)
    if not answers and any(talk.turns for talk in talks):
        raise llm.missing(study, name, asked)
    for talk, answer in zip(talks, answers, strict=False):
        text = text_of(answer)
        if ENDING in text:
            talk.ended = "farewell"
        talk.turns.append(Turn(role="client", text=text.replace(ENDING, "").strip()))
    return bool(answers)


def without_clients(study: Study, model: str) -> bool:
    """Whether the clients' words would have to be recorded answers and there are none: then no model has to be loaded."""
    recorded = llm.recorded(study, f"simulate/{model}")
    return study.simulate.client == "llm" and study.llm.mode == "replay" and not any(cassette.good for cassette in recorded)


def follow_script(talk: Talk) -> None:
    """Let a scripted client say the next volley of a talk."""
    assert talk.script is not None
    said = talk.script.say(talk.turns)
    if talk.script.over:
        talk.ended = "farewell" if talk.script.planned else "broken off"
    if said is not None:
        talk.turns.append(Turn(role="client", text=said))


def converse(study: Study, model: str, arm: str, counselor: Counselor) -> list[Dialog]:
    """All talks of one arm, side by side, until each client has said farewell or `simulate.rounds` are over.

    The counselor has the last word. No talk at all where the clients' words are not recorded.
    """
    options = study.simulate
    common = bundled()[1]
    talks = [Talk(profile, Scripted(profile, common) if options.client == "scripted" else None) for profile in profiles(study)]
    for _ in tqdm(range(options.rounds), desc=f"simulate {model} {arm}", unit="round"):
        going = [talk for talk in talks if not talk.ended]
        if not going:
            break
        if options.client == "llm":
            if not ask_clients(study, model, going):
                return []
        else:
            for talk in going:
                follow_script(talk)
        rounds = [waiting_round(talk, f"{model}-{arm}-{talk.profile.id}") for talk in going]
        for talk, reply in zip(going, counselor(rounds), strict=True):
            talk.turns.append(Turn(role="counselor", text=reply))
    return [
        Dialog(
            id=f"{model}-{arm}-{talk.profile.id}",
            source=model,
            turns=tuple(talk.turns),
            meta={
                "arm": arm,
                "profile": talk.profile.id,
                "topic": talk.profile.topic,
                "client": options.client,
                "ended": talk.ended or "at the limit",
            },
        )
        for talk in talks
    ]


def had_by_people(study: Study, model: str, arm: str) -> list[Dialog]:
    """Talks that people had with a model, as the chat exports them, in `<simulate.folder>/<model>/<arm>.jsonl`; perhaps none."""
    path = Path(study.simulate.folder) / model / f"{arm}.jsonl"
    if not path.exists():
        return []
    found = []
    for number, dialog in enumerate(read_dialogs(path), 1):
        if not any(turn.role == "counselor" for turn in dialog.turns):
            raise Problem(
                f"{path}, line {number}", f"dialog {dialog.id} without a counselor", "a dialog with the model", "remove it"
            )
        meta = {"profile": "", "topic": "", **dialog.meta, "arm": arm, "client": "person"}
        found.append(dialog.model_copy(update={"id": f"{model}-{arm}-{dialog.id}", "source": model, "meta": meta}))
    return found


def simulate(study: Study, model: str) -> None:
    """Let the study's clients talk with both arms of a model; see the module."""
    prepare_torch(study)
    options, inputs = study.simulate, [Path(study.finetune.instruction)]
    if options.client == "person":
        inputs.append(Path(options.folder))
    elif study.respond.engine == "local":
        inputs += [checkpoint(study, model), *adapters(study, model)]
    with stage(study, "simulate", model, inputs) as out:
        if options.client == "person":
            found = {arm: had_by_people(study, model, arm) for arm in study.arms(model)}
        elif without_clients(study, model):
            print(f"simulate@{model}: no dialogs are recorded; to record: {llm.how_to_record(study, f'simulate/{model}')}")
            found = {arm: [] for arm in study.arms(model)}
        else:
            counselors = served_counselors if study.respond.engine == "server" else local_counselors
            with counselors(study, model) as arms:
                found = {arm: converse(study, model, arm, arms[arm]) for arm in study.arms(model)}
        for arm in ARMS:
            if arm in found:
                write_dialogs(out / f"{arm}.jsonl", found[arm])
            else:  # an earlier run may have had it
                (out / f"{arm}.jsonl").unlink(missing_ok=True)
        numbers = {arm: features(dialogs) for arm, dialogs in found.items()}
        storage.write_json(out / "metrics.json", numbers)
        forget(out.parent, model)
