"""Stage `finetune@model`: LoRA-tune one base model on the training dialogs (paper, Methods of Fine-Tuning).

Reads `split/train.jsonl` and `base/<model>/checkpoint/`. Writes `finetune/<model>/adapter/` (plain peft), the loss curve in
`finetune/<model>/dvclive/` and `metrics.json`. Every `save_every` steps the whole state goes to
`finetune/.<model>.resume/`, from which a stopped run continues; on a CPU the result is the same, byte for byte.
"""

import json
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dvclive import Live
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from mi_llm import prompts, storage
from mi_llm.dialog import Dialog, read_dialogs
from mi_llm.models.base import chat_format, checkpoint, load, prepare_torch
from mi_llm.models.template import IGNORED, ChatFormat, Encoded, Placement, encode, messages
from mi_llm.problem import Problem
from mi_llm.stage import stage, tracked_parameters
from mi_llm.study import Finetune, Study


@dataclass(frozen=True)
class Batch:
    """Token ids, attention mask and labels, each [records, tokens], padded on the right."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor


def records(
    dialogs: Sequence[Dialog],
    tokenizer: PreTrainedTokenizerBase,
    form: ChatFormat,
    options: Finetune,
    instruction: str,
) -> list[Encoded]:
    """Encode the training records: one a dialog, or one a round with its history."""
    placement: Placement = options.instruction_placement
    if options.records == "dialog":
        chats = [messages(dialog.turns, instruction, placement) for dialog in dialogs]
    else:
        chats = []
        for dialog in dialogs:
            for place, turn in enumerate(dialog.turns):
                if turn.role == "counselor":
                    chats.append(messages(dialog.turns[: place + 1], instruction, placement))
    encoded = encode(tokenizer, form, chats, options.cutoff)
    return [record for record in encoded if any(label != IGNORED for label in record.labels)]


def collate(chosen: Sequence[Encoded], padding: int) -> Batch:
    """Pad records to the longest of them."""
    width = max(len(record.ids) for record in chosen)
    return Batch(
        ids=torch.tensor([record.ids + [padding] * (width - len(record.ids)) for record in chosen]),
        mask=torch.tensor([[1] * len(record.ids) + [0] * (width - len(record.ids)) for record in chosen]),
        labels=torch.tensor([record.labels + [IGNORED] * (width - len(record.labels)) for record in chosen]),
    )


def order(count: int, epochs: int, seed: int) -> list[int]:
    """Record numbers in the order of training: each epoch shuffled anew."""
    chance = random.Random(seed)
    return [place for _ in range(epochs) for place in chance.sample(range(count), count)]


def batches(encoded: Sequence[Encoded], places: Sequence[int], size: int, padding: int) -> Iterator[Batch]:
    """Yield micro-batches in training order."""
    for start in range(0, len(places), size):
        yield collate([encoded[place] for place in places[start : start + size]], padding)


def loss_sum(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Summed cross entropy of the labelled tokens of one micro-batch."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    return cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), batch.labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def adapt(model: PreTrainedModel, options: Finetune, seed: int) -> PeftModel:
    """Freeze the base and add seeded LoRA matrices to all its linear layers."""
    torch.manual_seed(seed)
    lora = options.lora
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules
    )
    adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


@dataclass
class Progress:
    """Where training stands: the next step and what has been logged so far."""

    step: int
    log: list[dict[str, float]]


class Resume:
    """The state of a training run on disk, replaced whole at each save and thrown away when the run is done."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.file, self.identity = folder / "state.pt", identity

    def save(self, progress: Progress, *parts: Any) -> None:
        """Write the state of training so far."""
        state = {
            "identity": self.identity,
            "progress": vars(progress),
            "parts": [part.state_dict() for part in parts],
            "random": torch.get_rng_state(),
        }
        with storage.replacing(self.file) as file:
            torch.save(state, file)

    def load(self, *parts: Any) -> Progress:
        """Continue from the saved state if it belongs to this very run, else from the start."""
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            if state["identity"] == self.identity:
                for part, saved in zip(parts, state["parts"], strict=True):
                    part.load_state_dict(saved)
                torch.set_rng_state(state["random"])
                return Progress(**state["progress"])
        return Progress(0, [])

    def discard(self) -> None:
        """Remove the state."""
        shutil.rmtree(self.file.parent, ignore_errors=True)


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


def fit(
    model: PeftModel, encoded: Sequence[Encoded], options: Finetune, *, padding: int, seed: int, resume: Resume, title: str
) -> Progress:
    """Train: AdamW, cosine schedule with warm-up, loss averaged over the labelled tokens of each step."""
    places = order(len(encoded), options.epochs, seed)
    per_step = options.batch * options.accumulation
    steps = math.ceil(len(places) / per_step)
    trainable = Trainable(model)
    optimizer = torch.optim.AdamW(trainable.weights.values(), lr=options.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(steps * options.warmup_ratio), steps)
    progress = resume.load(trainable, optimizer, schedule)
    model.train()
    with tqdm(total=steps, initial=progress.step, desc=title, unit="step") as bar:
        while progress.step < steps:
            now = places[progress.step * per_step : (progress.step + 1) * per_step]
            labelled = sum(label != IGNORED for place in now for label in encoded[place].labels[1:])
            total = 0.0
            for batch in batches(encoded, now, options.batch, padding):
                loss = loss_sum(model, batch) / labelled
                loss.backward()
                total += loss.item()
            if not math.isfinite(total):
                raise Problem(
                    f"{title}, step {progress.step}",
                    f"a loss of {total}",
                    "a finite loss",
                    "lower finetune.learning_rate, or train in float32",
                )
            norm = torch.nn.utils.clip_grad_norm_(list(trainable.weights.values()), options.gradient_clip)
            rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            if progress.step % options.log_every == 0 or progress.step == steps - 1:
                progress.log.append({"step": progress.step, "loss": total, "learning_rate": rate, "gradient_norm": norm.item()})
            progress.step += 1
            if progress.step % options.save_every == 0:
                resume.save(progress, trainable, optimizer, schedule)
            bar.update()
            bar.set_postfix(loss=f"{total:.3f}")
    return progress


def write_log(folder: Path, log: Sequence[dict[str, float]]) -> None:
    """Hand the whole curve to DVCLive at once, so that a resumed run leaves the same files as an uninterrupted one."""
    shutil.rmtree(folder, ignore_errors=True)
    with Live(str(folder), save_dvc_exp=False, dvcyaml=None) as live:
        for row in log:
            live.step = int(row["step"])
            for name in ("loss", "learning_rate", "gradient_norm"):
                live.log_metric(name, row[name])
            live.make_summary()


def save_adapter(model: PeftModel, folder: Path, checkpoint_name: str) -> None:
    """Save the adapter as peft does, with its settings in a fixed order and no path of this machine in them."""
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    settings = folder / "adapter_config.json"
    config = json.loads(settings.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = checkpoint_name
    storage.write_json(settings, config)


def finetune(study: Study, model: str) -> None:
    """Tune one model; see the module."""
    prepare_torch(study)
    options, form = study.finetune, chat_format(study, model)
    folder, train = checkpoint(study, model), study.folder / "split" / "train.jsonl"
    inputs = [folder, train, Path("prompts/counselor.jinja")]
    with stage(study, "finetune", model, inputs) as out:
        loaded, tokenizer = load(folder, options.precision)
        encoded = records(read_dialogs(train), tokenizer, form, options, prompts.render("counselor"))
        seed = study.seed_of("finetune", model)
        adapted = adapt(loaded, options, seed)
        identity = storage.dump([tracked_parameters(study, "finetune"), *(storage.sha256(path) for path in inputs)])
        resume = Resume(out.parent / f".{model}.resume", identity)
        padding = int(tokenizer.pad_token_id or 0)
        progress = fit(adapted, encoded, options, padding=padding, seed=seed, resume=resume, title=f"finetune {model}")
        save_adapter(adapted, out / "adapter", model)
        write_log(out / "dvclive", progress.log)
        numbers = {
            "records": len(encoded),
            "steps": progress.step,
            "labelled_tokens": sum(label != IGNORED for record in encoded for label in record.labels[1:]),
            "trainable_parameters": sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad),
            "first_loss": progress.log[0]["loss"],
            "last_loss": progress.log[-1]["loss"],
        }
        storage.write_json(out / "metrics.json", numbers)
        resume.discard()
