"""P2: LoRA training, ours against LLaMA-Factory's, on the same model files, dialogs and settings; goal: 1.5 times the tokens/s.

Both sides start from the same adapter, see the same records in the same order, and run in turn, each time in a fresh process,
so that the peak memory of each is its own. Reads the bundle's sample dialogs and tiny models; makes a random 21M-parameter
Llama. Needs LLaMA-Factory (benchmarks/peers.sh).

    python benchmarks/run.py P2
    python benchmarks/training.py 1 8     # a trial: one repetition, 8 dialogs
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peers
import torch
from results import Result, peak_memory, show, spread

from mi_llm import prompts
from mi_llm.corpora.files import from_folder
from mi_llm.corpora.read import READERS
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Dialog, Turn
from mi_llm.engine.load import load, prepare_torch
from mi_llm.engine.template import FORMATS, Encoded, encode, messages
from mi_llm.models.finetune import Resume, adapt, fit, save_adapter
from mi_llm.models.pretrain import Pretraining, build
from mi_llm.study import Finetune
from mi_llm.study import load as load_study

GOAL = 1.5
ROUNDS = 3
THREADS = 2
SEED = 1
MODELS = peers.ROOT / "pretrain" / "models"
Job = dict[str, Any]
Rounds = list[tuple[str, str]]


def settings(**changed: Any) -> Finetune:
    """The miniature's fine-tuning settings, with changes; every step is logged and none saved."""
    study = load_study(peers.ROOT / "mini" / "params.yaml")
    return study.finetune.model_copy(update={"records": "dialog", "log_every": 1, "save_every": 10**9, **changed})


def sample_dialogs() -> list[Dialog]:
    """The bundle's own CPsyCounD-format dialogs."""
    return list(READERS["cpsycound"](from_folder(peers.ROOT / "data" / "corpora" / "cpsycound"), Repairs()))


def in_float32(model: Path, folder: Path) -> Path:
    """Write a checkpoint again in float32: LLaMA-Factory trains in the precision that it is stored in."""
    loaded, tokenizer = load(model, "float32")
    loaded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_model(name: str, folder: Path, **shape: int) -> Path:
    """Write an untrained checkpoint with the architecture and tokenizer of a tiny model and another shape."""
    options = Pretraining(
        **shape, seed=SEED, threads=1, vocabulary=4096, tokenizer_dialogs=1, block=1, batch=1, tokens=1, muon_learning_rate=1.0,
        adam_learning_rate=1.0, weight_decay=0.0, warmup_steps=1, bf16=False, compiled=False,
    )  # fmt: skip
    _, tokenizer = load(MODELS / name, "float32")
    torch.manual_seed(SEED)
    build(name, options, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def records(dialogs: Sequence[Dialog], options: Finetune) -> list[Rounds]:
    """What is trained on: the dialogs, or twice as many of their rounds with history, drawn with a seed; steps come out even."""
    chats = [[(sample.client, sample.counselor) for sample in dialog.rounds()] for dialog in dialogs]
    if options.records == "round":
        rounds = [told[: number + 1] for told in chats for number in range(len(told))]
        chats = random.Random(SEED).sample(rounds, min(len(rounds), 2 * len(dialogs)))
    return chats[: len(chats) - len(chats) % (options.batch * options.accumulation)]


def job(model: Path, template: str, dialogs: Sequence[Dialog], options: Finetune, *, folder: Path, threads: int) -> Job:
    """Describe one training run for both sides; its first adapter is made here, once, and saved."""
    save_adapter(adapt(load(model, "float32")[0], options, SEED), folder / "adapter", model.name)
    return {
        "model": str(model),
        "template": template,
        "adapter": str(folder / "adapter"),
        "dialogs": records(dialogs, options),
        "instruction": prompts.filled_in(prompts.bundled_path("zh", "counselor"), "zh"),
        "threads": threads,
        "settings": options.model_dump(mode="json"),
    }


def encoded(work: Job, tokenizer: Any, options: Finetune) -> list[Encoded]:
    """A job's training records as tokens."""
    chats = []
    for rounds in work["dialogs"]:
        turns = []
        for client, counselor in rounds:
            turns += [Turn(role="client", text=client), Turn(role="counselor", text=counselor)]
        chats.append(messages(turns, work["instruction"], options.instruction_placement))
    return encode(tokenizer, FORMATS[work["template"]], chats, options.cutoff, last_only=options.loss == "last")


def ours(work: Job) -> dict[str, Any]:
    """Train one job with the bundle; what is measured is what llamafactory/train.py measures on the other side."""
    began = time.perf_counter()
    prepare_torch(load_study(peers.ROOT / "mini" / "params.yaml").model_copy(update={"threads": work["threads"]}))
    options = Finetune.model_validate(work["settings"])
    model, tokenizer = load(Path(work["model"]), options.precision)
    taught = encoded(work, tokenizer, options)
    adapted = adapt(model, options, SEED)
    before = peak_memory()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        progress = fit(
            adapted,
            taught,
            options,
            indices=list(range(len(taught))) * options.epochs,
            padding=int(tokenizer.pad_token_id),
            resume=Resume(Path(scratch), "benchmark"),
            title="ours",
        )
    return {
        "losses": [row["loss"] for row in progress.log],
        "learning_rates": [row["learning_rate"] for row in progress.log],
        "tokens": options.epochs * sum(len(record.ids) for record in taught),
        "seconds": time.perf_counter() - start,
        "whole_seconds": time.perf_counter() - began,
        "memory_before_mb": before,
        "memory_mb": peak_memory(),
    }


def theirs(work: Job) -> dict[str, Any]:
    """Train one job with LLaMA-Factory."""
    return peers.exchanged(work, lambda asked, answer: peers.run("train.py", asked, answer, threads=work["threads"]))


def ours_apart(work: Job) -> dict[str, Any]:
    """Train one job with the bundle, in a process of its own."""
    command = [sys.executable, __file__, "ours"]
    return peers.exchanged(
        work,
        lambda asked, answer: subprocess.run([*command, asked, answer], check=True, capture_output=True, env=peers.ON_PROCESSOR),
    )


def compare(work: Job, repetitions: int) -> dict[str, Any]:
    """Run both sides in turn, a few times, and compare their medians and their loss curves."""
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "llamafactory": []}
    for repetition in range(repetitions):
        sides = [("ours", ours_apart), ("llamafactory", theirs)]
        for name, side in sides if repetition % 2 == 0 else reversed(sides):
            runs[name].append(side(work))
    measured: dict[str, Any] = {
        name: {
            "tokens_per_second": spread([run["tokens"] / run["seconds"] for run in done]),
            "memory_mb": spread([run["memory_mb"] for run in done]),
            "memory_for_training_mb": spread([run["memory_mb"] - run["memory_before_mb"] for run in done]),
            "tokens": done[0]["tokens"],
            "losses": done[0]["losses"],
        }
        for name, done in runs.items()
    }
    mine, other = measured["ours"], measured["llamafactory"]
    speed = [run["tokens_per_second"]["median"] for run in (mine, other)]
    held = [run["memory_mb"]["median"] for run in (mine, other)]
    curves = [run["losses"] for run in (mine, other)]
    difference = max(abs(our_loss - their_loss) for our_loss, their_loss in zip(*curves, strict=True))
    return {
        **measured,
        "ratio": round(speed[0] / speed[1], 3),
        "memory_ratio": round(held[0] / held[1], 3),
        "largest_loss_difference": difference,
        "version": runs["llamafactory"][0]["version"],
    }


def works(folder: Path, most: int | None) -> dict[str, Job]:
    """The training runs that are compared: the miniature's settings on its models, the paper's steps on a larger one."""
    dialogs = sample_dialogs()[:most]
    large = random_model("tiny-llama3", folder / "llama-21m", hidden=448, intermediate=1216, layers=8, heads=7, key_value_heads=7)
    paper: Job = {
        "batch": 1,
        "accumulation": 8,
        "cutoff": 2048,
        "instruction_placement": "query",
        "epochs": 1,
        "checkpointing": False,
    }
    made: dict[str, tuple[Path, str, Job]] = {}
    for checkpointing in (False, True):
        name = f"random 21M Llama, the paper's steps (8 times 1 record), {'with' if checkpointing else 'no'} checkpointing"
        made[name] = (large, "llama3", {**paper, "checkpointing": checkpointing})
    rounds = {"records": "round", "batch": 4, "accumulation": 2}
    made["random 21M Llama, rounds with their history as records (2 times 4)"] = (large, "llama3", {**paper, **rounds})
    for template in FORMATS:
        tiny = in_float32(MODELS / f"tiny-{template}", folder / template)
        made[f"tiny-{template}, the miniature's settings"] = (tiny, template, {"epochs": 2})
    jobs = {}
    for number, (name, (model, template, changed)) in enumerate(made.items()):
        jobs[name] = job(model, template, dialogs, settings(**changed), folder=folder / str(number), threads=THREADS)
    return jobs


def main(repetitions: int = ROUNDS, most: int | None = None) -> Result:
    """Compare all works; the ratio is that of the work where we gain least."""
    peers.python()
    with tempfile.TemporaryDirectory() as scratch:
        compared = {name: compare(work, repetitions) for name, work in works(Path(scratch), most).items()}
    least = min(compared, key=lambda name: compared[name]["ratio"])
    shown = ("tokens_per_second", "memory_mb", "memory_for_training_mb")
    return {
        "id": "P2",
        "work": f"LoRA training in float32 on {THREADS} threads; shown: {least}",
        "ours": {name: compared[least]["ours"][name] for name in shown},
        "peers": {"llamafactory": {name: compared[least]["llamafactory"][name] for name in shown}},
        "ratio": compared[least]["ratio"],
        "goal": f"at least {GOAL:g} times the tokens/s for every work, with no more memory",
        "met": all(numbers["ratio"] >= GOAL and numbers["memory_ratio"] <= 1 for numbers in compared.values()),
        "details": compared,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        measured = ours(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
        Path(sys.argv[3]).write_text(json.dumps(measured), encoding="utf-8")
    else:
        outcome = main(*map(int, sys.argv[1:]))
        show(outcome)
        for work, numbers in outcome["details"].items():
            print(
                f"  {work}: {numbers['ratio']:.2f} times the tokens/s, {numbers['memory_ratio']:.2f} times the memory,", end=" "
            )
            print(f"losses within {numbers['largest_loss_difference']:.1e}")
