"""Stage `simulate@model`: standardized clients talk with the base and the tuned model (paper, Methods, Manual Evaluation).

The paper's researchers talked with the tuned models only; here both arms meet the same clients, so that there is an untuned
control. Reads the checkpoint, the adapter and the profiles (`clients.py`). Writes `simulate/<model>/base.jsonl`, `tuned.jsonl`
(one dialog per client, with the client's readiness to change before and after) and, where a language model plays the clients,
its answers in `cassette.jsonl`. Talks that people had with the models are read from `simulate.folder` instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mi_llm import prompts, storage
from mi_llm.dialog import Dialog, Round, Turn, features, read_dialogs
from mi_llm.engine.counselor import Counselor, adapters, counselors, forget
from mi_llm.engine.load import checkpoint, prepare_torch
from mi_llm.language import language
from mi_llm.llm import ask
from mi_llm.llm.cassette import Check, Question, text_of
from mi_llm.llm.record import count_tokens
from mi_llm.miti.clients import Profile, Scripted, read_profiles
from mi_llm.miti.coder.llm import checked, content, form, lines
from mi_llm.problem import Problem
from mi_llm.stage import stage, write_arms
from mi_llm.study import Study

RULER = range(11)  # readiness to change
ENDS = ("before", "after")
VOLLEY = 53  # tokens of a volley, for estimates: the longest mean of a counselor's in the paper's Table 4, in characters


@dataclass
class Talk:
    """A talk under way: who the client is, what was said, and how it ended, if it has."""

    profile: Profile
    script: Scripted | None = None
    turns: list[Turn] = field(default_factory=list)
    ended: str = ""
    readiness: list[int] = field(default_factory=list)  # before and after, 0 to 10; empty where it is not known


def profiles(study: Study) -> list[Profile]:
    """The clients of the study: `simulate.dialogs` of the profiles in its file, a seeded draw in their order."""
    options = study.simulate
    known, common = read_profiles(Path(options.profiles))
    if options.client == "scripted":
        silent = next((profile.id for profile in known if not profile.scripted), "" if common else "all of them")
        if silent:
            found = f"no lines of {silent}, which a scripted client says"
            expected = "`says` and `readiness` for each client, and `common`"
            raise Problem(options.profiles, found, expected, "add them, or set simulate.client to llm or person")
    return sorted(study.sample(known, options.dialogs, "simulate.dialogs", "simulate"), key=known.index)


def waiting_round(talk: Talk, name: str) -> Round:
    """The client volley that waits for a reply, with its history."""
    number = (len(talk.turns) + 1) // 2
    *history, last = talk.turns
    return Round(id=f"{name}#{number}", dialog=name, number=number, history=tuple(history), client=last.text, counselor="")


def says_something(farewell: str) -> Check:
    """The check of a client's answer, which may end with the mark of a talk that is over."""
    return lambda answer: None if answer.replace(farewell, "").strip() else "only the end mark"


def client_question(
    study: Study, client: str, prompt: str, part: dict[str, Any], turns: Sequence[Turn], *, temperature: float
) -> Question:
    """What a language model that plays a client is asked: the talk so far, seen from the client's chair.

    `prompt` names the file of the instruction, which is rendered with `part`, the client's own.
    """
    prompt_file, speech = prompts.load(study, prompt), language.load(study.language)
    instruction = prompt_file.render(**part, ending=speech.farewell)
    heard = [{"role": "assistant" if turn.role == "client" else "user", "content": turn.text or speech.silence} for turn in turns]
    messages = [{"role": "system", "content": instruction}, {"role": "user", "content": speech.opening}, *heard]
    request = ask.request(study, messages, temperature=temperature)
    return Question(f"client {client}", request, prompt_file.provenance, check=says_something(speech.farewell))


def client_questions(study: Study, talks: Sequence[Talk]) -> list[Question]:
    """What a language model that plays the clients is asked."""
    temperature = study.simulate.temperature
    return [
        client_question(study, talk.profile.id, "client", {"profile": talk.profile}, talk.turns, temperature=temperature)
        for talk in talks
    ]


def readiness_of(answer: str) -> int:
    """The readiness that an answer gives. Raises ValueError."""
    readiness = content(answer, "readiness", int)
    if isinstance(readiness, bool) or readiness not in RULER:
        raise ValueError(f"readiness is {readiness!r}, not 0 to 10")
    return int(readiness)


def ruler_questions(study: Study, talks: Sequence[Talk]) -> list[Question]:
    """The readiness ruler, asked of the language model that plays the clients, in view of the talk so far."""
    answer = form("ruler", readiness={"type": "integer", "enum": list(RULER)})
    prompt_file = prompts.load(study, "ruler")
    questions = []
    for talk in talks:
        text = prompt_file.render(profile=talk.profile, transcript=lines(talk.turns))
        messages = [{"role": "user", "content": text}]
        request = ask.request(study, messages, temperature=0, response_format=answer)
        about = f"readiness of client {talk.profile.id}"
        questions.append(Question(about, request, prompt_file.provenance, checked(readiness_of)))
    return questions


def ask_readiness(study: Study, model: str, talks: Sequence[Talk]) -> None:
    """Note how ready each client is now: by the script, or by the ruler's recorded answer; nothing where none is recorded."""
    if study.simulate.client == "scripted":
        for talk in talks:
            assert talk.script is not None
            talk.readiness.append(talk.script.readiness)
        return
    answers = ask.answers(study, f"simulate/{model}", ruler_questions(study, talks))
    for talk, answer in zip(talks, answers, strict=False):
        talk.readiness.append(readiness_of(text_of(answer)))


def workload(study: Study, model: str) -> ask.Workload:
    """An upper bound of what playing the clients of one model requests: each talk of both arms with all its rounds."""
    options = study.simulate
    if options.client != "llm":
        return ask.Workload("none: the clients are not played by a language model", 0, 0, 0, "nothing is requested")
    arms = len(study.arms(model))
    talks = arms * options.dialogs
    opening = client_questions(study, [Talk(profile) for profile in profiles(study)])
    tokens = [count_tokens(study.llm.model, message["content"]) for asked in opening for message in asked.request["messages"]]
    history = options.dialogs * VOLLEY * options.rounds * (options.rounds - 1)  # 2 volleys more in each further round
    rulers = sum(
        count_tokens(study.llm.model, asked.request["messages"][0]["content"])
        for asked in ruler_questions(study, [Talk(profile) for profile in profiles(study)])
    )
    count = talks * (options.rounds + 2)
    return ask.Workload(
        requests=f"at most {count}: {talks} talks of {options.rounds} rounds, and readiness twice; recorded answers not again",
        count=count,
        sent=arms * (sum(tokens) * options.rounds + history + 2 * rulers + 2 * options.dialogs * VOLLEY * options.rounds),
        answered=count * VOLLEY,
        assumed=f"no dialog ends early and a volley has {VOLLEY} tokens",
    )


def ask_clients(study: Study, model: str, talks: Sequence[Talk]) -> bool:
    """Let a language model say the next volley of each talk; False if nothing at all is recorded for the stage."""
    name = f"simulate/{model}"
    asked, farewell = client_questions(study, talks), language.load(study.language).farewell
    answers = ask.answers(study, name, asked)
    if not answers and any(talk.turns for talk in talks):
        raise ask.missing(study, name, asked)
    for talk, answer in zip(talks, answers, strict=False):
        text = text_of(answer)
        if farewell in text:
            talk.ended = "farewell"
        talk.turns.append(Turn(role="client", text=text.replace(farewell, "").strip()))
    return bool(answers)


def without_clients(study: Study, model: str) -> bool:
    """Whether the clients' words would have to be recorded answers and there are none: then no model has to be loaded."""
    recorded = ask.recorded(study, f"simulate/{model}")
    return study.simulate.client == "llm" and study.llm.mode == "replay" and not any(cassette.good for cassette in recorded)


def follow_script(talk: Talk) -> None:
    """Let a scripted client say the next volley of a talk."""
    assert talk.script is not None
    line = talk.script.say(talk.turns)
    if talk.script.over:
        talk.ended = "farewell" if talk.script.planned else "broken off"
    if line is not None:
        talk.turns.append(Turn(role="client", text=line))


def converse(study: Study, model: str, counselor: Counselor) -> list[Dialog]:
    """All talks of one arm, side by side, until each client has said farewell or `simulate.rounds` are over.

    The counselor has the last word. No talk at all where the clients' words are not recorded.
    """
    options, arm = study.simulate, counselor.arm
    common, scripted = read_profiles(Path(options.profiles))[1], options.client == "scripted"
    manner = (common, study.language, study.code.cues.counselor)
    talks = [Talk(profile, Scripted(profile, *manner) if scripted else None) for profile in profiles(study)]
    ask_readiness(study, model, talks)
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
        for talk, reply in zip(going, counselor.replies(rounds), strict=True):
            talk.turns.append(Turn(role="counselor", text=reply))
    ask_readiness(study, model, talks)
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
                "readiness": talk.readiness if len(talk.readiness) == len(ENDS) else [],
            },
        )
        for talk in talks
    ]


def had_by_people(study: Study, model: str, arm: str) -> list[Dialog]:
    """Talks that people had with a model, as the chat exports them, in `<simulate.folder>/<model>/<arm>.jsonl`; perhaps none."""
    path = Path(study.simulate.folder) / model / f"{arm}.jsonl"
    if not path.exists():
        return []
    dialogs = []
    for number, dialog in enumerate(read_dialogs(path), 1):
        if not any(turn.role == "counselor" for turn in dialog.turns):
            raise Problem(
                f"{path}, line {number}", f"dialog {dialog.id} without a counselor", "a dialog with the model", "remove it"
            )
        meta = {"profile": "", "topic": "", **dialog.meta, "arm": arm, "client": "person"}
        dialogs.append(dialog.model_copy(update={"id": f"{model}-{arm}-{dialog.id}", "source": model, "meta": meta}))
    return dialogs


def simulate(study: Study, model: str) -> None:
    """Let the study's clients talk with both arms of a model; see the module."""
    prepare_torch(study)
    options, inputs = study.simulate, [Path(study.finetune.instruction)]
    if options.client == "person":
        inputs.append(Path(options.folder))
    else:
        inputs.append(Path(options.profiles))
    if options.client != "person" and study.respond.engine == "local":
        inputs += [checkpoint(study, model), *adapters(study, model)]
    with stage(study, "simulate", model, inputs) as out:
        if options.client == "person":
            talks = {str(arm): had_by_people(study, model, arm) for arm in study.arms(model)}
        elif without_clients(study, model):
            print(f"simulate@{model}: no dialogs are recorded; to record: {ask.how_to_record(study, f'simulate/{model}')}")
            talks = {str(arm): [] for arm in study.arms(model)}
        else:
            talks = {counselor.arm: converse(study, model, counselor) for counselor in counselors(study, model, "simulate")}
        write_arms(out, {arm: [dialog.model_dump() for dialog in dialogs] for arm, dialogs in talks.items()})
        numbers = {arm: features(dialogs) for arm, dialogs in talks.items()}
        storage.write_json(out / "metrics.json", numbers)
        forget(out.parent, model)
