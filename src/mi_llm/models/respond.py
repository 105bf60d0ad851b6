"""Stage `respond@model`: let base and tuned model answer every test round (paper, Automatic Evaluation, formula 2).

Reads `split/test_rounds.jsonl` (and `aligned_rounds.jsonl`, where there is one), the base checkpoint and the adapter. Writes
`respond/<model>/base.jsonl` and `tuned.jsonl` (round, dialog, text, tokens, finish) and `metrics.json`. Every answer goes to
`respond/.<model>.<arm>.<process>.jsonl` as it comes, with its time, and a stopped run continues from there. Several processes
(`torchrun`) share the dialogs and give the same file as one. With engine `server` a model server is asked instead; its responses
are kept as they come, too, and end up in `base.cassette.jsonl` and `tuned.cassette.jsonl`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mi_llm import prompts, storage
from mi_llm.construct.cassette import Cassette, Question, key_of
from mi_llm.construct.record import record
from mi_llm.dialog import Round, Turn, read_rounds
from mi_llm.models.base import chat_format, checkpoint, is_out_of_memory, load_base, prepare_torch
from mi_llm.models.branching import Branching, Choose, Plan, branching_attention, drawn, greedy, plan
from mi_llm.models.processes import Processes
from mi_llm.models.template import ChatFormat, Message, messages, prompt
from mi_llm.problem import Problem
from mi_llm.stage import stage, tracked_parameters
from mi_llm.study import ARMS, Sampling, Study

Answer = dict[str, Any]


def asked_rounds(study: Study) -> list[Round]:
    """The test rounds, and those of the repaired test set that are not among them."""
    folder = study.folder / "split"
    repaired = folder / "aligned_rounds.jsonl"
    found = [*read_rounds(folder / "test_rounds.jsonl"), *(read_rounds(repaired) if repaired.exists() else [])]
    return list({sample.id: sample for sample in found}.values())


def chats(rounds: Sequence[Round], study: Study) -> list[list[Message]]:
    """The test rounds as chat messages: instruction, history, and the client's volley."""
    instruction = prompts.instruction(study)
    return [
        messages([*sample.history, Turn(role="client", text=sample.client)], instruction, study.finetune.instruction_placement)
        for sample in rounds
    ]


def plans(rounds: Sequence[Round], asked: Sequence[list[int]], done: dict[str, Answer]) -> list[Plan]:
    """What is still to be answered, a plan a dialog, the longest dialogs first."""
    places: dict[str, list[int]] = {}
    for place, sample in enumerate(rounds):
        if sample.id not in done:
            places.setdefault(sample.dialog, []).append(place)
    found = [plan(mine, [asked[place] for place in mine]) for mine in places.values()]
    return sorted(found, key=lambda one: (-one.prefilled, one.places))


def sampler(options: Sampling, rounds: Sequence[Round], study: Study, arm: str, most: int) -> Choose:
    """A choice by chance (temperature, then top-k, then top-p); each round has its own random numbers, whoever is beside it."""
    chance = np.stack(
        [np.random.default_rng(study.seed_of("respond", arm, sample.id)).random(most, np.float32) for sample in rounds]
    )

    def choose(logits: torch.Tensor, places: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
        temperature, top_p = (logits.new_full((len(places),), value) for value in (options.temperature, options.top_p))
        return drawn(
            logits, temperature, options.top_k, top_p, torch.from_numpy(chance[list(places), list(counts)]).to(logits.device)
        )

    return choose


class Journal:
    """The answers of one arm as they come, a line each behind a line that says which work they belong to.

    Each process writes its own file and reads all: nothing that any run of the same work answered is asked again.
    """

    def __init__(self, folder: Path, name: str, identity: str, rank: int) -> None:
        self.folder, self.name, self.identity = folder, name, identity
        self.path = folder / f".{name}.{rank}.jsonl"

    def files(self) -> list[Path]:
        """The files of all processes."""
        return sorted(self.folder.glob(f".{self.name}.*.jsonl"))

    def lines(self, path: Path) -> list[bytes]:
        """The whole lines of a file, without a torn last one; none if it is not there or belongs to another work."""
        found = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return found if found and json.loads(found[0]) == {"identity": self.identity} else []

    def answers(self) -> dict[str, Answer]:
        """What has been answered, by round."""
        answered = (json.loads(line) for path in self.files() for line in self.lines(path)[1:])
        return {answer["round"]: answer for answer in answered}

    def begin(self) -> None:
        """Make this process's file ready to be added to: cut off a torn line, or start again for another work."""
        if lines := self.lines(self.path):
            os.truncate(self.path, sum(len(line) + 1 for line in lines))
        else:
            storage.write_lines(self.path, [{"identity": self.identity}])

    def close(self) -> None:
        """Remove the files when the answers are in the output; their times stay in `.speed/`, outside all outputs."""
        times = [{name: answer[name] for name in ("round", "seconds", "tokens")} for answer in self.answers().values()]
        storage.write_lines(self.folder.parent / ".speed" / f"respond-{self.name}.jsonl", times)
        for path in self.files():
            path.unlink()


def kept(answers: Iterator[tuple[int, list[int], str]], journal: Journal, entry: Callable[..., Answer], bar: Any) -> int:
    """Put answers into the journal as they come; returns their tokens."""
    began, tokens = time.monotonic(), 0
    with journal.path.open("ab") as file:
        for place, ids, finish in answers:
            seconds = round(time.monotonic() - began, 3)
            file.write(storage.dump(entry(place, ids, finish) | {"seconds": seconds}).encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())
            tokens += len(ids)
            bar.update()
            bar.set_postfix_str(f"{tokens / max(seconds, 0.001):.0f} token/s", refresh=False)
    return tokens


def answer_all(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    form: ChatFormat,
    rounds: Sequence[Round],
    *,
    study: Study,
    journal: Journal,
) -> None:
    """Answer this process's share of what the journal lacks, and say what it took.

    The first process reads the journal for all of them: the others' view would be another one, as answers come.
    """
    processes, options = Processes(), study.respond
    rank, world = processes.rank, processes.count
    asked = [prompt(tokenizer, form, chat) for chat in chats(rounds, study)]
    done = processes.from_main(journal.answers() if processes.main else {})
    mine = plans(rounds, asked, done)[rank::world]
    journal.begin()

    def entry(place: int, ids: list[int], finish: str) -> Answer:
        sample, text = rounds[place], tokenizer.decode(ids, skip_special_tokens=True).strip()
        counts = {"prompt_tokens": len(asked[place]), "tokens": len(ids)}
        return {"round": sample.id, "dialog": sample.dialog, "text": text, **counts, "finish": finish}

    arm = journal.name.rsplit(".", 1)[-1]
    most = options.max_new_tokens
    choose = greedy if options.decoding == "greedy" else sampler(options.sampling, rounds, study, arm, most)
    branching = Branching(model, form.stop_ids(tokenizer), options.batch, most, choose)
    title = f"respond {journal.name}" + (f" ({rank + 1} of {world})" if world > 1 else "")
    wanted = sum(len(one.places) for one in mine)
    began = time.monotonic()
    with enough_memory(title, options.batch), tqdm(total=wanted, desc=title, unit="round") as bar:
        tokens = kept(branching.answers(mine), journal, entry, bar)
    if wanted:
        alone = sum(len(asked[place]) for one in mine for place in one.places)
        print(
            f"{title}: {wanted} rounds, {tokens} tokens in {time.monotonic() - began:.1f} s; read {branching.prefilled} tokens"
            f" (each dialog once, then its branches; round by round: {alone})",
            file=sys.stderr,
        )


@contextmanager
def enough_memory(title: str, batch: int) -> Iterator[None]:
    """Say what to do when there is not."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Problem(
            title, "out of memory", f"memory for {batch} rounds at a time", "lower respond.batch, and run again"
        ) from error


def with_adapter(study: Study, model: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A loaded base, with its adapter if the study tunes it, and its tokenizer."""
    loaded, tokenizer = load_base(study, model, study.respond.precision)
    branching_attention(loaded)
    if "tuned" not in study.arms(model):
        return loaded.eval(), tokenizer
    return PeftModel.from_pretrained(loaded, study.folder / "finetune" / model / "adapter").eval(), tokenizer


def acting_as(arm: str, model: torch.nn.Module) -> AbstractContextManager[None]:
    """Let a model with an adapter be one of its arms inside this block."""
    return model.disable_adapter() if arm == "base" and isinstance(model, PeftModel) else nullcontext()


def answer_locally(study: Study, model: str, rounds: Sequence[Round], journals: dict[str, Journal]) -> dict[str, list[Answer]]:
    """The answers of the model's arms, from one loaded base; empty for all processes but the first."""
    processes, form = Processes(), chat_format(study, model)
    tuned, tokenizer = with_adapter(study, model)
    found: dict[str, list[Answer]] = {}
    for arm, journal in journals.items():
        if arm == "tuned" and study.respond.adapter == "merged":
            tuned = tuned.merge_and_unload()
        with acting_as(arm, tuned):
            answer_all(tuned, tokenizer, form, rounds, study=study, journal=journal)
        processes.all(arm)  # here each waits for the others
        if processes.main:
            answers = journal.answers()
            found[arm] = [without_time(answers[sample.id]) for sample in rounds]
    return found


def without_time(answer: Answer) -> Answer:
    """An answer as the output keeps it: the same for every run."""
    return {name: value for name, value in answer.items() if name != "seconds"}


def served_name(model: str, arm: str) -> str:
    """The name under which a model server offers an arm."""
    return model if arm == "base" else f"{model}+mi"


def questions(study: Study, rounds: Sequence[Round], model: str, arm: str) -> list[Question]:
    """The requests for the rounds' replies."""
    options, path = study.respond, Path(study.finetune.instruction)
    greedily = options.decoding == "greedy"
    prompt_file = {"name": path.as_posix(), "sha256": storage.sha256(path)}
    found = []
    for sample, chat in zip(rounds, chats(rounds, study), strict=True):
        request: dict[str, Any] = {
            "model": served_name(model, arm),
            "messages": chat,
            "max_tokens": options.max_new_tokens,
            **options.requested(greedy=greedily),
        }
        if not greedily:
            request["seed"] = study.seed_of("respond", arm, sample.id)
        found.append(Question(f"round {sample.id}", request, prompt_file, check=lambda _: None, any_text=True))
    return found


def unfinished(study: Study, folder: Path, model: str, arm: str) -> Cassette:
    """A server's replies until the stage has its output, from which an interrupted run goes on.

    Its name tells server and adapter apart: what a model said before it was tuned again does not count.
    """
    adapter = study.folder / "finetune" / model / "adapter"
    asked = {"server": study.respond.server, "adapter": storage.sha256(adapter) if adapter.exists() else ""}
    return Cassette(folder / f".{model}.{arm}.{key_of(asked)[:12]}.cassette")


def forget(folder: Path, model: str) -> None:
    """Remove a server's replies when the output is there: a model that is served again may be another one."""
    for arm in ARMS:
        for path in folder.glob(f".{model}.{arm}.*.cassette"):
            path.unlink()


def answer_by_server(study: Study, model: str, rounds: Sequence[Round], out: Path) -> dict[str, list[Answer]]:
    """The answers of the model's arms from a model server, and in the output the recorded responses."""
    found: dict[str, list[Answer]] = {}
    for arm in study.arms(model):
        options = study.llm.model_copy(update={"base_url": study.respond.server, "model": served_name(model, arm)})
        asked = questions(study, rounds, model, arm)
        cassette = unfinished(study, out.parent, model, arm)
        with cassette.recording():
            wanted = {one.key: one for one in asked if one.key not in cassette.good}
            if wanted:
                record(options, list(wanted.values()), cassette, f"respond {model} {arm}")
        storage.write_lines(out / f"{arm}.cassette.jsonl", [cassette.good[one.key] for one in asked])
        found[arm] = [answer_of(sample, cassette.good[one.key]) for sample, one in zip(rounds, asked, strict=True)]
    return found


def answer_of(sample: Round, recorded: dict[str, Any]) -> Answer:
    """A recorded response in the form of the other engine's answers."""
    choice, used = recorded["response"]["choices"][0], recorded["usage"] or {}
    return {
        "round": sample.id,
        "dialog": sample.dialog,
        "text": (choice["message"]["content"] or "").strip(),
        "prompt_tokens": used.get("prompt_tokens", 0),
        "tokens": used.get("completion_tokens", 0),
        "finish": choice.get("finish_reason") or "stop",
    }


def numbers_of(answers: dict[str, list[Answer]]) -> dict[str, float]:
    """How many rounds there are, how long the replies are, and what share of them was cut at the limit."""
    numbers: dict[str, float] = {"rounds": len(answers["base"])}
    for arm, mine in answers.items():
        numbers[f"{arm}_tokens_mean"] = round(sum(answer["tokens"] for answer in mine) / len(mine), 4)
        numbers[f"{arm}_cut_share"] = round(sum(answer["finish"] == "length" for answer in mine) / len(mine), 4)
    return numbers


def adapters(study: Study, model: str) -> list[Path]:
    """The adapter that a model's arms need, if the study tunes it."""
    return [study.folder / "finetune" / model / "adapter"] if "tuned" in study.arms(model) else []


def identity_of(study: Study, inputs: Sequence[Path]) -> str:
    """What makes two runs the same: parameters and inputs."""
    return storage.dump([tracked_parameters(study, "respond"), *(storage.sha256(path) for path in inputs)])


def respond(study: Study, model: str) -> None:
    """Answer the test rounds with a model's arms; see the module."""
    prepare_torch(study)
    processes, title = Processes(), f"respond {model}"
    asked, place = study.folder / "split", study.folder / "respond" / model
    inputs = [asked, Path(study.finetune.instruction)]
    if study.respond.engine == "local":
        inputs = [checkpoint(study, model), *adapters(study, model), *inputs]
    with (
        processes.together(title),
        stage(study, "respond", model, inputs) if processes.main else nullcontext(place) as out,
    ):
        rounds, journals = asked_rounds(study), dict[str, Journal]()
        dialogs = len({sample.dialog for sample in rounds})
        local = study.respond.engine == "local"
        processes.refuse_idle(title, dialogs if local else 1, f"{dialogs} dialogs" if local else "one server")
        if not local:
            answers = answer_by_server(study, model, rounds, out)
            processes.all("answered")  # here each waits for the others
        else:
            identity = processes.from_main(identity_of(study, inputs) if processes.main else "")
            journals = {arm: Journal(out.parent, f"{model}.{arm}", identity, processes.rank) for arm in study.arms(model)}
            answers = answer_locally(study, model, rounds, journals)
        if not processes.main:
            return
        for arm in ARMS:
            if arm in answers:
                storage.write_lines(out / f"{arm}.jsonl", answers[arm])
            else:  # an earlier run may have had it
                (out / f"{arm}.jsonl").unlink(missing_ok=True)
        storage.write_json(out / "metrics.json", numbers_of(answers))
        for journal in journals.values():
            journal.close()
        forget(out.parent, model)
