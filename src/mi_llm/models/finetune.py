"""Stage `finetune@model`: LoRA-tune one base model on the training dialogs (paper, Methods of Fine-Tuning).

Reads `split/train.jsonl` and `base/<model>/checkpoint/`. Writes `finetune/<model>/adapter/` (plain peft, with a model card),
`finetune/<model>/vllm/` (the same for vLLM), the loss curve in `finetune/<model>/dvclive/`, `metrics.json`, and `left_out.csv` if
a record was cut or left out. Every `save_every` steps the whole state goes to `finetune/.<model>.resume/`, from which a stopped
run continues; on a CPU the result is the same, byte for byte. Speed and memory, which no two runs share, are kept outside the
outputs in `.speed/finetune-<model>.jsonl`.

One process, or many that share each step's records:

    mi-llm finetune MODEL --study params.yaml
    torchrun --nproc_per_node 2 -m mi_llm finetune MODEL --study params.yaml

A step has `batch * accumulation` records in all, whatever the number of processes, so the loss curve is the same. Each process
holds the whole base, unless it does not fit its card, or ACCELERATE_USE_FSDP is true (`accelerate launch --use_fsdp` makes it
so): then they share it out (FSDP), and a layer is whole only while it is at work. The adapter is whole in every process.
"""

import json
import math
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from dvclive import Live
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from mi_llm import prompts, storage
from mi_llm.dialog import Dialog, Turn, read_dialogs
from mi_llm.engine import estimate
from mi_llm.engine.attention import beyond
from mi_llm.engine.gradients import write_out
from mi_llm.engine.load import chat_format, checkpoint, config_of, enough_memory, load_base, load_tokenizer, prepare_torch
from mi_llm.engine.packing import ATTENTION, Batch, loss_sum, pack, pad, shares
from mi_llm.engine.processes import Processes
from mi_llm.engine.template import IGNORED, ChatFormat, Encoded, encode, messages
from mi_llm.models import card
from mi_llm.models.vllm import write_for_vllm
from mi_llm.problem import Problem
from mi_llm.stage import stage, tracked_parameters
from mi_llm.study import Finetune, Study

LESS_MEMORY = (
    "set finetune.checkpointing: true, lower finetune.batch (and raise accumulation by the same factor: the result is the same), "
    "or on a GPU set finetune.four_bit: true; `mi-llm doctor` says what fits"
)


def finetune(study: Study, model: str) -> None:
    """Tune one model, or leave it as it is if the study does not tune it; see the module."""
    prepare_torch(study)
    processes, title = Processes(), f"finetune {model}"
    if model not in study.tuned:
        if processes.main:
            leave(study, model)
        return
    refuse_idle(processes, study.finetune, title)
    inputs, folder = inputs_of(study, model), study.path("finetune", model)
    with (
        processes.together(title),
        stage(study, "finetune", model, inputs) if processes.main else nullcontext(folder) as out,
    ):
        numbers, resume = tune(study, model, out, title)
        if processes.main:
            storage.write_text(out / "adapter" / "README.md", card.card(study, model, card.source_of(study, model), numbers))
            write_for_vllm(out / "adapter", out / "vllm")
            storage.write_json(out / "metrics.json", numbers)
            resume.discard()


def tune(study: Study, model: str, out: Path, title: str) -> "tuple[dict[str, float], Resume]":
    """Tune one model with the study's seed; write the adapter, the loss curve, and what was left out to the folder `out`.

    Returns the numbers for `metrics.json` (none but in the main process), and the state from which a stopped run continues, for
    the stage to discard when all its work is done.
    """
    processes, options = Processes(), study.finetune
    torch.set_num_threads(max(1, study.threads // processes.beside))
    identity = processes.from_main(identity_of(study, model, inputs_of(study, model)) if processes.main else "")
    shared = is_shared(checkpoint(study, model), options, processes)
    loaded, tokenizer = load_base(study, model, options.precision, in_main_memory=shared)
    options = laid_out(loaded, options)
    training_set = records_of(study, model, tokenizer)
    seed = study.seed_of("finetune", model)
    adapted = adapt(loaded, options, seed)
    if shared:
        share_out(adapted)
    resume = Resume(out.with_name(f".{out.name}.resume"), identity)
    progress = fit(
        adapted,
        training_set.encoded,
        options,
        indices=order(len(training_set.encoded), options.epochs, seed),
        padding=int(tokenizer.pad_token_id or 0),
        resume=resume,
        title=title,
        names=training_set.names,
        seed=seed,
        speed=study.folder / ".speed" / f"{title.replace(' ', '-')}.jsonl",
    )
    if not processes.main:
        return {}, resume
    return save(study, model, out, adapted=adapted, training_set=training_set, progress=progress), resume


def leave(study: Study, model: str) -> None:
    """Leave a model untuned: it has no adapter, nor what an earlier run made of it."""
    with stage(study, "finetune", model, []) as out:
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        storage.write_json(out / "metrics.json", {"tuned": False})


def refuse_idle(processes: Processes, options: Finetune, title: str) -> None:
    """Refuse more processes than a step has records; print a note where they share the records unevenly."""
    records = options.batch * options.accumulation
    processes.refuse_idle(title, records, f"the {records} records of a step (finetune.batch × finetune.accumulation)")
    if processes.main and records % processes.count:
        most = math.ceil(records / processes.count)
        uneven = f"{processes.count} processes share the {records} records of a step unevenly"
        print(f"{title}: {uneven}: all wait for those that have {most}", file=sys.stderr)


def inputs_of(study: Study, model: str) -> list[Path]:
    """What the stage reads."""
    return [checkpoint(study, model), study.path("split", "train.jsonl"), Path(study.finetune.instruction)]


def identity_of(study: Study, model: str, inputs: Sequence[Path]) -> str:
    """What makes two runs the same: parameters and inputs."""
    return storage.dump([tracked_parameters(study, "finetune", model), *(storage.sha256(path) for path in inputs)])


# ---- records


@dataclass
class Records:
    """The training records in the order of the dialogs, with their names (`dialog`, or `dialog#number` for a round).

    `notes` says of every record that was cut or left out why: (name, `cut` or `left out`, reason).
    """

    names: list[str] = field(default_factory=list)
    encoded: list[Encoded] = field(default_factory=list)
    notes: list[tuple[str, str, str]] = field(default_factory=list)

    def noted(self, outcome: str) -> int:
        """How many records were `cut` or `left out`."""
        return sum(noted == outcome for _, noted, _ in self.notes)


def labeled_tokens(record: Encoded) -> int:
    """Tokens of a record that the loss sees: all labels but that of the first token, which nothing predicts."""
    return sum(label != IGNORED for label in record.labels[1:])


def records_of(study: Study, model: str, tokenizer: PreTrainedTokenizerBase) -> Records:
    """The training records of a study's model; says what was cut and left out."""
    train, form, options = study.path("split", "train.jsonl"), chat_format(study, model), study.finetune
    if form.records(options) != options and Processes().main:
        why = "its chat template writes earlier replies of a dialog otherwise than the last"
        print(f"finetune@{model}: {why}, so each round is a record, and the loss is on its reply", file=sys.stderr)
    training_set = records(read_dialogs(train), tokenizer, form, options, prompts.instruction(study))
    if not training_set.encoded:
        raise Problem(
            str(train), "no record to train on", "dialogs with answered client turns", "raise finetune.cutoff, or look there"
        )
    if training_set.notes and Processes().main:
        print(
            f"finetune@{model}: {training_set.noted('cut')} records cut, {training_set.noted('left out')} left out",
            file=sys.stderr,
        )
    return training_set


def records(
    dialogs: Sequence[Dialog],
    tokenizer: PreTrainedTokenizerBase,
    form: ChatFormat,
    options: Finetune,
    instruction: str,
) -> Records:
    """Encode the first `max_samples` training records, each at most `cutoff` tokens."""
    options = form.records(options)
    training_set, samples = Records(), list[tuple[str, Sequence[Turn]]]()
    for dialog in dialogs:
        dialog_samples = list(samples_of(dialog, options))
        samples += dialog_samples
        if not dialog_samples:
            training_set.notes.append(
                (dialog.id, "left out", "no turns" if not dialog.turns else "no client turn that is answered")
            )
    samples = samples[: options.max_samples]
    chats = [messages(turns, instruction, options.instruction_placement) for _, turns in samples]
    last_only = options.loss == "last"
    encoded = encode(tokenizer, form, chats, options.cutoff, last_only=last_only)
    full = [index for index, record in enumerate(encoded) if len(record.ids) >= options.cutoff]
    uncut = encode(tokenizer, form, [chats[index] for index in full], sys.maxsize, last_only=last_only)
    lengths = {index: len(record.ids) for index, record in zip(full, uncut, strict=True)}
    for index, ((name, _), record) in enumerate(zip(samples, encoded, strict=True)):
        length = lengths.get(index, len(record.ids))
        if not labeled_tokens(record):
            training_set.notes.append(
                (name, "left out", f"no counselor token among the {len(record.ids)} of {length} that are kept")
            )
            continue
        if length > len(record.ids):
            training_set.notes.append((name, "cut", f"{length} tokens, of which {len(record.ids)} are kept"))
        training_set.names.append(name)
        training_set.encoded.append(record)
    return training_set


def samples_of(dialog: Dialog, options: Finetune) -> Iterator[tuple[str, Sequence[Turn]]]:
    """Yield the records of one dialog: all of it up to the last answer, or each round with its history."""
    answers = [len(sample.history) + 1 for sample in dialog.rounds()]
    granularity = options.records if options.records != "release" else dialog.meta.get("records")
    if granularity == "dialog":
        for index in answers[-1:]:
            yield dialog.id, dialog.turns[: index + 1]
    elif granularity == "round":
        for number, index in enumerate(answers, 1):
            yield f"{dialog.id}#{number}", dialog.turns[: index + 1]
    else:
        raise Problem(
            f"split/train.jsonl: {dialog.id}",
            f"meta.records is {granularity!r}",
            "dialog or round, as the authors' training file has it (finetune.records: release)",
            "use transcribe.source: release, or set finetune.records to dialog or round",
        )


def order(count: int, epochs: int, seed: int) -> list[int]:
    """Record numbers in the order of training: each epoch shuffled again."""
    chance = random.Random(seed)
    return [index for _ in range(epochs) for index in chance.sample(range(count), count)]


# ---- the model


def is_shared(folder: Path, options: Finetune, processes: Processes) -> bool:
    """Whether the processes share the base out: if they are told to, or if it does not fit a card whole."""
    told = os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes")
    if processes.count == 1 or options.four_bit:
        return False
    if told or processes.device.type != "cuda":
        return told
    shape = estimate.shape_of(config_of(folder))
    room = torch.cuda.get_device_properties(processes.device).total_memory
    return not estimate.plan(shape, options, estimate.worst(options), room, processes=processes.count).fits


def laid_out(model: PreTrainedModel, options: Finetune) -> Finetune:
    """The options that suit a model: records are padded if its attention has what ours does not know."""
    why = beyond(model) if options.packed else ""
    if not why:
        return options
    if Processes().main:
        print(f"{model.name_or_path}: its attention has {why}; records are padded, which takes longer", file=sys.stderr)
    return options.model_copy(update={"packed": False})


def lora_of(options: Finetune) -> LoraConfig:
    """The LoRA that the parameters describe, as peft takes it."""
    lora = options.lora
    return LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules
    )


def adapt(model: PreTrainedModel, options: Finetune, seed: int) -> PeftModel:
    """Freeze the base and add seeded LoRA matrices, in float32, to all its linear layers."""
    torch.manual_seed(seed)
    adapted = get_peft_model(model, lora_of(options))
    assert isinstance(adapted, PeftModel)
    return adapted


def share_out(model: PeftModel) -> None:
    """Let each process keep its share of the frozen base (FSDP); the adapter is small, and stays whole."""
    adapter = {weight for weight in model.parameters() if weight.requires_grad}
    device = Processes().device
    for weight in adapter:
        weight.data = weight.data.to(device)
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, ignored_params=adapter)
    fully_shard(model, ignored_params=adapter)


def make_ready(model: PeftModel, options: Finetune) -> None:
    """Set a model up for training: its attention, its layers' arithmetic, gradient checkpointing."""
    if options.packed:
        model.get_base_model().set_attn_implementation(ATTENTION)
    if (left := write_out(model)) and Processes().main:
        print(f"{model.get_base_model().name_or_path}: gradients of {', '.join(left)} are left to autograd", file=sys.stderr)
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.get_base_model().model.layers[-1].gradient_checkpointing = False  # the first to go back
    model.train()


# ---- training


@dataclass
class Progress:
    """Where training stands: the next step and what has been logged so far."""

    step: int
    log: list[dict[str, float]]


class Trainable:
    """The adapter's weights as something with a state: the frozen base is not saved with it."""

    def __init__(self, model: PeftModel) -> None:
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The adapter's weights by name."""
        return {name: weight.detach() for name, weight in self.weights.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Set the adapter's weights."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state[name])


class Resume:
    """The state of a training run on disk, replaced whole at each save and removed when the run is done.

    The main process saves and reads, the others receive it. Random numbers need no state: each step seeds its own.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.file, self.identity = folder / "state.pt", identity

    def save(self, progress: Progress, *parts: Any) -> None:
        """Write the state of training so far."""
        state = {"identity": self.identity, "progress": vars(progress), "parts": [part.state_dict() for part in parts]}
        with storage.replacing(self.file) as file:
            torch.save(state, file)

    def load(self, processes: Processes, *parts: Any) -> Progress:
        """Continue from the saved state if it belongs to this run, else from the start."""
        stored = torch.load(self.file, weights_only=True, map_location="cpu") if processes.main and self.file.exists() else None
        state = processes.from_main(stored if stored and stored["identity"] == self.identity else None)
        if not state:
            return Progress(0, [])
        for part, saved in zip(parts, state["parts"], strict=True):
            part.load_state_dict(saved)
        return Progress(**state["progress"])

    def discard(self) -> None:
        """Remove the state."""
        shutil.rmtree(self.file.parent, ignore_errors=True)


class Training:
    """A model, its records, and what of them the loss sees; one process's part in each step."""

    def __init__(self, model: PeftModel, encoded: Sequence[Encoded], options: Finetune, padding: int) -> None:
        self.model, self.encoded, self.options, self.padding = model, encoded, options, padding
        self.lengths = [len(record.ids) for record in encoded]
        self.labeled = [labeled_tokens(record) for record in encoded]
        self.processes = Processes()
        self.trainable = Trainable(model)

    def batch(self, micro_batch: Sequence[int]) -> Batch:
        """Lay the records of a micro-batch out for one pass."""
        chosen = [self.encoded[index] for index in micro_batch]
        return pack(chosen, self.processes.device) if self.options.packed else pad(chosen, self.padding, self.processes.device)

    def backward(self, step_records: Sequence[int]) -> list[tuple[torch.Tensor, list[int]]]:
        """Gradients of this process's share of a step; returns each micro-batch's part of the step's loss, and its records.

        Where the base is shared out, all processes must pass through it equally often: one with fewer micro-batches repeats a
        record, which then counts nothing.
        """
        dealt = shares(step_records, self.lengths, self.options, self.processes.count, self.processes.device)
        micro_batches = dealt[self.processes.rank]
        idle = max(map(len, dealt)) - len(micro_batches) if isinstance(self.model, FSDPModule) else 0
        tokens, kind = sum(self.labeled[index] for index in step_records), self.processes.device.type
        losses = list[tuple[torch.Tensor, list[int]]]()
        for micro_batch in [*micro_batches, *[list(step_records[:1])] * idle]:
            with torch.autocast(kind, torch.bfloat16, enabled=self.options.precision == "bfloat16"):
                loss = loss_sum(self.model, self.batch(micro_batch)) * (len(losses) < len(micro_batches)) / tokens
            loss.backward()
            losses.append((loss.detach(), micro_batch))
        return losses

    def add_up(self, losses: Sequence[tuple[torch.Tensor, list[int]]]) -> torch.Tensor:
        """Add the step's loss and gradients up over all processes; returns the loss."""
        total = torch.zeros((), device=self.processes.device)
        for loss, _ in losses:
            total += loss
        for weight in self.trainable.weights.values():
            if weight.grad is None:  # a last, short step may have no record for this process
                weight.grad = torch.zeros_like(weight)
        self.processes.sum([total, *(weight.grad for weight in self.trainable.weights.values())])
        return total


def fit(
    model: PeftModel,
    encoded: Sequence[Encoded],
    options: Finetune,
    *,
    indices: Sequence[int],
    padding: int,
    resume: Resume,
    title: str,
    names: Sequence[str] = (),
    seed: int = 0,
    speed: Path | None = None,
) -> Progress:
    """Train: AdamW, cosine schedule with warm-up, loss averaged over the labeled tokens of each step.

    `indices` are the record numbers in the order of training, all epochs. `names` of the records are for messages, `seed` is
    for dropout, `speed` the file that is told how fast it goes. Returns where training ended, with the log of its steps.
    """
    make_ready(model, options)
    training, processes = Training(model, encoded, options, padding), Processes()
    weights = list(training.trainable.weights.values())
    optimizer = torch.optim.AdamW(weights, lr=options.learning_rate, weight_decay=0.0, fused=True)
    per_step = options.batch * options.accumulation
    steps = math.ceil(len(indices) / per_step)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(steps * options.warmup_ratio), steps)
    progress = resume.load(processes, training.trainable, optimizer, schedule)
    pace = Pace(speed, progress.step, steps)
    with tqdm(total=steps, initial=progress.step, desc=title, unit="step", disable=not processes.main) as bar:
        while progress.step < steps:
            step_records = indices[progress.step * per_step : (progress.step + 1) * per_step]
            where = f"{title}, step {progress.step}"
            torch.manual_seed(random.Random(f"{seed}/{progress.step}/{processes.rank}").getrandbits(63))
            with enough_memory(where, "one micro-batch", LESS_MEMORY, memory_in_use):
                losses = training.backward(step_records)
            total = training.add_up(losses)
            norm = clip_grad_norm_(weights, options.gradient_clip)
            loss, gradient_norm = torch.stack([total, norm]).tolist()
            if not math.isfinite(loss + gradient_norm):
                raise not_finite(where, loss, losses, names)
            rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            pace.went(sum(training.lengths[index] for index in step_records))
            if progress.step % options.log_every == 0 or progress.step == steps - 1:
                progress.log.append({"step": progress.step, "loss": loss, "learning_rate": rate, "gradient_norm": gradient_norm})
                pace.note()
            progress.step += 1
            if progress.step % options.save_every == 0 and processes.main:
                resume.save(progress, training.trainable, optimizer, schedule)
            bar.set_postfix_str(f"loss {loss:.3f}, {pace}", refresh=False)
            bar.update()
    return progress


def memory_in_use() -> str:
    """How much memory was in use, for the message of a step that ran out of it."""
    used, there_is = memory()
    return f"up to {used / 2**30:.1f} of {there_is / 2**30:.1f} GiB were in use"


def memory() -> tuple[int, int]:
    """The most bytes this process has held so far, and how many there are: of its GPU, or else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, psutil.virtual_memory().total


def not_finite(where: str, loss: float, losses: Sequence[tuple[torch.Tensor, list[int]]], names: Sequence[str]) -> Problem:
    """The problem of a step whose loss or gradient is not finite; names the records of the micro-batches that caused it."""
    suspects = [indices for part, indices in losses if not part.isfinite()]
    indices = sorted(
        {index for micro_batches in Processes().all(suspects) for micro_batch in micro_batches for index in micro_batch}
    )
    guilty = ", ".join(names[index] if names else f"record {index}" for index in indices)
    return Problem(
        where,
        f"a loss of {loss}, from {guilty}" if guilty else f"a loss of {loss:.4f}, but a gradient that is not finite",
        "finite numbers",
        "lower finetune.learning_rate, or set finetune.precision: float32; then look at these dialogs in split/train.jsonl",
    )


class Pace:
    """How fast training goes, for the progress bar and for a file that is not an output."""

    def __init__(self, file: Path | None, step: int, steps: int) -> None:
        self.processes = Processes()
        self.file, self.first, self.step, self.steps = file if self.processes.main else None, step, step, steps
        self.began, self.tokens = time.monotonic(), 0
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if not step:
                self.file.unlink(missing_ok=True)

    def went(self, tokens: int) -> None:
        """Count one step."""
        self.step += 1
        self.tokens += tokens
        self.seconds = time.monotonic() - self.began

    def __str__(self) -> str:  # noqa: D105
        return f"{self.tokens / self.seconds:,.0f} tokens/s, {memory()[0] / 2**30:.1f} GiB"

    def note(self) -> None:
        """Append a line about this run since it was started or resumed."""
        line = {
            "step": self.step - 1,
            "processes": self.processes.count,
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "memory_gib": round(memory()[0] / 2**30, 3),
            "seconds_left": round(self.seconds / (self.step - self.first) * (self.steps - self.step), 1),
        }
        if self.file:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(storage.dump(line) + "\n")


# ---- what is kept


def save(
    study: Study, model: str, out: Path, *, adapted: PeftModel, training_set: Records, progress: Progress
) -> dict[str, float]:
    """Write what training gave; returns its numbers."""
    source = card.source_of(study, model)
    save_adapter(adapted, out / "adapter", source.name, source.revision)
    write_log(out / "dvclive", progress.log)
    write_notes(out / "left_out.csv", training_set.notes)
    return {
        "records": len(training_set.encoded),
        "cut": training_set.noted("cut"),
        "left_out": training_set.noted("left out"),
        "steps": progress.step,
        "tokens": sum(len(record.ids) for record in training_set.encoded),
        "labelled_tokens": sum(map(labeled_tokens, training_set.encoded)),
        "trainable_parameters": sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad),
        "first_loss": progress.log[0]["loss"],
        "last_loss": progress.log[-1]["loss"],
    }


def save_adapter(model: PeftModel, folder: Path, checkpoint_name: str, revision: str | None = None) -> None:
    """Save the adapter as peft does, with its settings in a fixed order and no path of this machine in them."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    settings = folder / "adapter_config.json"
    config = json.loads(settings.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"], config["revision"] = checkpoint_name, revision
    storage.write_json(settings, config)


def write_log(folder: Path, log: Sequence[dict[str, float]]) -> None:
    """Hand the whole curve to DVCLive at once, so that a resumed run leaves the same files as an uninterrupted one."""
    shutil.rmtree(folder, ignore_errors=True)
    with Live(str(folder), save_dvc_exp=False, dvcyaml=None) as live:
        for row in log:
            live.step = int(row["step"])
            for name in ("loss", "learning_rate", "gradient_norm"):
                live.log_metric(name, row[name])
            live.make_summary()


def write_notes(path: Path, notes: Sequence[tuple[str, str, str]]) -> None:
    """Write which records were cut or left out; no file if there is none."""
    path.unlink(missing_ok=True)
    if notes:
        storage.write_text(path, storage.csv_text(["record", "outcome", "reason"], notes))


# ---- before it starts


def dry_run(study: Study, model: str) -> None:
    """Print what `finetune` would do, and what it would take on the hardware found; writes nothing."""
    if model not in study.tuned:
        print(f"finetune {model}: not tuned; finetune.untuned of {study.params} names it")
        return
    for path in inputs_of(study, model):
        if not path.exists():
            raise Problem(str(path), "missing", f"the input of finetune@{model}", "run the stages before it")
    prepare_torch(study)
    processes, options, folder = Processes(), study.finetune, checkpoint(study, model)
    refuse_idle(processes, options, f"finetune {model}")
    training_set = records_of(study, model, load_tokenizer(folder))
    lengths = [len(record.ids) for record in training_set.encoded]
    indices = order(len(lengths), options.epochs, study.seed_of("finetune", model))
    per_step = options.batch * options.accumulation
    steps = [indices[start : start + per_step] for start in range(0, len(indices), per_step)]
    dealt = [shares(step_records, lengths, options, processes.count, processes.device) for step_records in steps]
    micro_batches = [micro_batch for step in dealt for share in step for micro_batch in share]
    largest = max(micro_batches, key=lambda micro_batch: sum(lengths[index] for index in micro_batch))
    load = estimate.Load(
        tokens=sum(lengths[index] for index in largest),
        labeled=sum(labeled_tokens(training_set.encoded[index]) for index in largest),
        context=sum(lengths) / len(lengths),
    )
    shape = estimate.shape_of(config_of(folder))
    if processes.main:
        text = estimate.forecast(
            model, shape, options, estimate.here(), load,
            records=len(lengths), tokens=sum(lengths), processes=processes.count,
        )  # fmt: skip
        print(text)
