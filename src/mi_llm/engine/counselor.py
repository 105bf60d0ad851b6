"""A model's arms as counselors: what each replies to rounds, on this machine or from a model server.

`respond`, `simulate`, `prefer` and the model server share this. Locally the base is loaded once, with its adapter beside it, and
the adapter is switched off where the base replies. A model server offers the arms as `<model>` and `<model>+mi`; its replies are
kept in a cassette beside the stage's output until that is written, so that an interrupted run goes on.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from mi_llm import prompts, storage
from mi_llm.dialog import Round, Turn
from mi_llm.engine.branching import Branching, Choose, Plan, branching_attention, drawn, greedy, plan
from mi_llm.engine.load import chat_format, enough_memory, load_base, whole
from mi_llm.engine.template import Message, messages, prompt, unmarked
from mi_llm.llm.answer import finish_of, tokens_of, without_thoughts
from mi_llm.llm.cassette import Cassette, Question, key_of, text_of
from mi_llm.llm.record import record
from mi_llm.study import ARMS, Sampling, Study, served_name

Answer = dict[str, Any]  # round, dialog, text, prompt_tokens, tokens, finish


class Counselor(Protocol):
    """One arm of a model."""

    arm: str

    def replies(self, rounds: Sequence[Round]) -> list[str]:
        """What it says to each round's client, given the round's history."""


def counselors(study: Study, model: str, stage: str) -> "Iterator[LocalCounselor] | Iterator[ServedCounselor]":
    """A model's arms, base first; use each before taking the next. `stage` is the stage that uses them."""
    return local_counselors(study, model) if study.respond.engine == "local" else served_counselors(study, model, stage)


def chats(rounds: Sequence[Round], study: Study) -> list[list[Message]]:
    """Rounds as chat messages: instruction, history, and the client's volley."""
    instruction = prompts.instruction(study)
    return [
        messages([*sample.history, Turn(role="client", text=sample.client)], instruction, study.finetune.instruction_placement)
        for sample in rounds
    ]


# ---- on this machine


def adapters(study: Study, model: str) -> list[Path]:
    """The adapter that a model's arms need, if the study tunes it."""
    return [study.path("finetune", model, "adapter")] if "tuned" in study.arms(model) else []


def with_adapter(study: Study, model: str, adapter: Path | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """A loaded base, with the given adapter, else the model's own if the study tunes it, and its tokenizer."""
    network, tokenizer = load_base(study, model, study.respond.precision)
    branching_attention(network)
    for path in [adapter] if adapter else adapters(study, model):
        with whole(path):
            network = PeftModel.from_pretrained(network, path)
    return network.eval(), tokenizer


def acting_as(arm: str, network: torch.nn.Module) -> AbstractContextManager[None]:
    """Let a model with an adapter be one of its arms inside this block."""
    return network.disable_adapter() if arm == "base" and isinstance(network, PeftModel) else nullcontext()


def local_counselors(study: Study, model: str, adapter: Path | None = None) -> "Iterator[LocalCounselor]":
    """A model's arms, from one loaded base, with the given adapter or the model's own.

    An adapter that is to be merged is merged when the tuned one's turn has come.
    """
    network, tokenizer = with_adapter(study, model, adapter)
    for arm in study.arms(model):
        yield LocalCounselor(study, model, arm, network, tokenizer)


class LocalCounselor:
    """An arm of a loaded model, greedy or sampled as `respond` says.

    `arm` seeds the sampling: one random number per round and token.
    """

    def __init__(self, study: Study, model: str, arm: str, network: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        if arm != "base" and study.respond.adapter == "merged":
            network = network.merge_and_unload()
        self.study, self.model, self.arm, self.network, self.tokenizer = study, model, arm, network, tokenizer
        self.form = chat_format(study, model)

    def prompts(self, rounds: Sequence[Round]) -> list[list[int]]:
        """The tokens of each round's chat, up to where the reply begins."""
        return [prompt(self.tokenizer, self.form, chat) for chat in chats(rounds, self.study)]

    def branching(self, rounds: Sequence[Round]) -> Branching:
        """What answers these rounds: `respond.batch` at a time, by the study's decoding."""
        options = self.study.respond
        most = options.max_new_tokens
        choose = greedy if options.decoding == "greedy" else sampler(options.sampling, rounds, self.study, self.arm, most)
        return Branching(self.network, self.form.stop_ids(self.tokenizer), options.batch, most, choose)

    def answers(
        self, branching: Branching, rounds: Sequence[Round], prompt_ids: Sequence[list[int]], dialogs: Sequence[Plan]
    ) -> Iterator[Answer]:
        """Yield the answers to the rounds of the plans `dialogs`, as they come; `prompt_ids` are the prompts of all rounds."""
        title, batch = f"{self.model} {self.arm}", f"{self.study.respond.batch} rounds at a time"
        with acting_as(self.arm, self.network), enough_memory(title, batch, "lower respond.batch, and run again"):
            for index, tokens, finish in branching.answers(dialogs):
                text = self.text_of(tokens)
                counts = {"prompt_tokens": len(prompt_ids[index]), "tokens": len(tokens)}
                sample = rounds[index]
                yield {"round": sample.id, "dialog": sample.dialog, "text": text, **counts, "finish": finish}

    def text_of(self, tokens: list[int]) -> str:
        """What the tokens of a reply say, without thoughts."""
        return without_thoughts(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def replies(self, rounds: Sequence[Round]) -> list[str]:
        """What it says to each round's client, given the round's history."""
        prompt_ids = self.prompts(rounds)
        answers = self.answers(self.branching(rounds), rounds, prompt_ids, plans(rounds, prompt_ids, {}))
        texts = {answer["round"]: answer["text"] for answer in answers}
        return [texts[sample.id] for sample in rounds]


def plans(rounds: Sequence[Round], prompt_ids: Sequence[list[int]], answered: dict[str, Answer]) -> list[Plan]:
    """What is still to be answered, one plan per dialog, the longest dialogs first."""
    by_dialog: dict[str, list[int]] = {}
    for index, sample in enumerate(rounds):
        if sample.id not in answered:
            by_dialog.setdefault(sample.dialog, []).append(index)
    unanswered = [plan(indices, [prompt_ids[index] for index in indices]) for indices in by_dialog.values()]
    return sorted(unanswered, key=lambda dialog: (-dialog.prefilled, dialog.indices))


def sampler(options: Sampling, rounds: Sequence[Round], study: Study, arm: str, most: int) -> Choose:
    """Sample tokens (temperature, top-k, top-p); each round has its own random numbers, whatever rounds are answered with it."""
    chance = np.stack(
        [np.random.default_rng(study.seed_of("respond", arm, sample.id)).random(most, np.float32) for sample in rounds]
    )

    def choose(logits: torch.Tensor, indices: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
        temperature, top_p = (logits.new_full((len(indices),), value) for value in (options.temperature, options.top_p))
        numbers = torch.from_numpy(chance[list(indices), list(counts)]).to(logits.device)
        return drawn(logits, temperature, options.top_k, top_p, numbers)

    return choose


# ---- from a model server


def served_counselors(study: Study, model: str, stage: str) -> "Iterator[ServedCounselor]":
    """A model's arms, asked of the model server `respond.server`."""
    for arm in study.arms(model):
        yield ServedCounselor(study, model, arm, stage)


class ServedCounselor:
    """An arm of a model that a server offers."""

    def __init__(self, study: Study, model: str, arm: str, stage: str) -> None:
        self.study, self.model, self.arm, self.title = study, model, arm, f"{stage} {model} {arm}"
        self.cassette = unfinished(study, study.path(stage), model, arm)

    def records(self, rounds: Sequence[Round]) -> list[dict[str, Any]]:
        """The server's recorded response to each round; asks for those that are not recorded yet."""
        name = served_name(self.model, self.arm)
        options = self.study.llm.model_copy(update={"base_url": self.study.respond.server, "model": name})
        all_questions = questions(self.study, rounds, self.model, self.arm)
        with self.cassette.recording():
            unrecorded = {question.key: question for question in all_questions if question.key not in self.cassette.good}
            if unrecorded:
                record(options, list(unrecorded.values()), self.cassette, self.title)
        return [self.cassette.good[question.key] for question in all_questions]

    def replies(self, rounds: Sequence[Round]) -> list[str]:
        """What it says to each round's client, given the round's history."""
        return [answer_of(sample, recorded)["text"] for sample, recorded in zip(rounds, self.records(rounds), strict=True)]


def questions(study: Study, rounds: Sequence[Round], model: str, arm: str) -> list[Question]:
    """The requests for the rounds' replies."""
    options, path = study.respond, Path(study.finetune.instruction)
    greedily = options.decoding == "greedy"
    prompt_file = {"name": path.as_posix(), "sha256": storage.sha256(path)}
    all_questions = []
    for sample, chat in zip(rounds, chats(rounds, study), strict=True):
        request: dict[str, Any] = {
            "model": served_name(model, arm),
            "messages": unmarked(chat),
            "max_tokens": options.max_new_tokens,
            **options.requested(greedy=greedily),
        }
        if not greedily:
            request["seed"] = study.seed_of("respond", arm, sample.id)
        all_questions.append(Question(f"round {sample.id}", request, prompt_file, check=lambda _: None, any_text=True))
    return all_questions


def unfinished(study: Study, folder: Path, model: str, arm: str) -> Cassette:
    """A server's replies until the stage has its output, from which an interrupted run goes on.

    Its name tells server and adapter apart: what a model said before it was tuned again does not count.
    """
    adapter = study.path("finetune", model, "adapter")
    source = {"server": study.respond.server, "adapter": storage.sha256(adapter) if adapter.exists() else ""}
    return Cassette(folder / f".{model}.{arm}.{key_of(source)[:12]}.cassette")


def forget(folder: Path, model: str) -> None:
    """Remove a server's replies once the output is written: the server may serve another model next time."""
    for arm in ARMS:
        for path in folder.glob(f".{model}.{arm}.*.cassette"):
            path.unlink()
            path.with_suffix(".requests").unlink(missing_ok=True)


def answer_of(sample: Round, recorded: dict[str, Any]) -> Answer:
    """A recorded response in the form of a local counselor's answers."""
    sent, received = tokens_of(recorded["usage"])
    return {
        "round": sample.id,
        "dialog": sample.dialog,
        "text": text_of(recorded).strip(),
        "prompt_tokens": sent or 0,
        "tokens": received or 0,
        "finish": finish_of(recorded["response"]["choices"][0]),
    }
