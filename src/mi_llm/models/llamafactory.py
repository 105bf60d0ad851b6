"""The study's training and test data for LLaMA-Factory, the tool that the paper used. No stage; people call it.

Reads `split/train.jsonl` and `split/test_rounds.jsonl`. Writes one folder: `mi_train.json` and `mi_test.json` (alpaca records, as
the paper's authors had them), `dataset_info.json`, and for each tuned model `<model>.train.yaml` and `<model>.predict.yaml`
with the study's settings. What LLaMA-Factory then predicts, `mi-llm tool score` takes.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mi_llm import prompts, storage
from mi_llm.dialog import Turn, read_dialogs, read_rounds
from mi_llm.engine.load import checkpoint
from mi_llm.models.export import new_folder
from mi_llm.models.finetune import samples_of
from mi_llm.problem import Problem
from mi_llm.study import Study

TRAIN, TEST = "mi_train", "mi_test"  # names of the data sets
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
SHORT = re.compile(r"^-?\d+(?=e)")  # a number's digits before an exponent, without a point
Settings = dict[str, Any]


def export(study: Study, out: Path) -> None:
    """Write the study's data and settings as LLaMA-Factory reads them, whole or not at all.

    Raises Problem for a folder that is there already, and before stage `split` has run.
    """
    instruction, options = prompts.instruction(study), study.finetune
    samples = [turns for dialog in read_dialogs(study.path("split", "train.jsonl")) for _, turns in samples_of(dialog, options)]
    asked: list[Sequence[Turn]] = [
        (*sample.history, Turn(role="client", text=sample.client), Turn(role="counselor", text=sample.counselor))
        for sample in read_rounds(study.path("split", "test_rounds.jsonl"))
    ]
    if not samples:
        raise Problem(str(study.path("split", "train.jsonl")), "no record", "dialogs to train on", "run stage `split` again")
    talks: dict[str, list[Sequence[Turn]]] = {TRAIN: samples[: options.max_samples], TEST: asked}
    with new_folder(out) as part:
        for name, dialogs in talks.items():
            records = [alpaca(turns, instruction, options.instruction_placement) for turns in dialogs]
            storage.write_json(part / f"{name}.json", records)
        listed = {name: {"file_name": f"{name}.json", "columns": COLUMNS} for name in talks}
        storage.write_json(part / "dataset_info.json", listed)
        for model in study.tuned:
            storage.write_text(part / f"{model}.train.yaml", yaml(training(study, model, out)))
            storage.write_text(part / f"{model}.predict.yaml", yaml(predicting(study, model, out)))
    opened = sum(turns[0].role == "counselor" for dialogs in talks.values() for turns in dialogs)
    print(f"written: {out}; {len(talks[TRAIN])} records to train on, {len(asked)} rounds to answer")
    if opened:
        print(f"note: {opened} of them begin with the counselor; an empty client volley stands before these, as the format wants")
    print(f"then: llamafactory-cli train {out}/{study.tuned[0]}.train.yaml" if study.tuned else "the study tunes no model")


def alpaca(turns: Sequence[Turn], instruction: str, placement: str) -> Settings:
    """One dialog as a record of LLaMA-Factory's alpaca format: its last round is input and output, the rounds before are history.

    The instruction stands where the study puts it: before the last client volley (`query`), or in a system turn.
    """
    texts = [turn.text for turn in turns]
    if turns[0].role == "counselor":
        texts.insert(0, "")
    rounds = list(zip(texts[::2], texts[1::2], strict=True))
    client, counselor = rounds[-1]
    return {
        "instruction": instruction if placement == "query" else "",
        "input": client,
        "output": counselor,
        "history": [list(before) for before in rounds[:-1]],
        "system": instruction if placement == "system" else "",
    }


def common(study: Study, model: str, out: Path) -> Settings:
    """The settings that training and predicting share."""
    return {
        "stage": "sft",
        "model_name_or_path": str(checkpoint(study, model)),
        "template": study.models[model].chat_format,
        "finetuning_type": "lora",
        "dataset_dir": str(out),
        "cutoff_len": study.finetune.cutoff,
        "overwrite_cache": True,
        "report_to": "none",
        "seed": study.seed,
    } | ({"quantization_bit": 4} if study.finetune.four_bit else {})


def training(study: Study, model: str, out: Path) -> Settings:
    """The study's section `finetune` in LLaMA-Factory's words (0.9.5)."""
    options = study.finetune
    return common(study, model, out) | {
        "do_train": True,
        "dataset": TRAIN,
        "output_dir": f"{out}/{model}",
        "mask_history": options.loss == "last",
        "lora_rank": options.lora.rank,
        "lora_alpha": options.lora.alpha,
        "lora_dropout": options.lora.dropout,
        "lora_target": "all" if options.lora.target_modules == "all-linear" else ",".join(options.lora.target_modules),
        "disable_gradient_checkpointing": not options.checkpointing,
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": options.accumulation,
        "num_train_epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": options.scheduler,
        "warmup_ratio": options.warmup_ratio,
        "max_grad_norm": options.gradient_clip,
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "bf16": options.precision == "bfloat16",
        "logging_steps": options.log_every,
        "save_steps": options.save_every,
    }


def predicting(study: Study, model: str, out: Path) -> Settings:
    """The study's section `respond` in LLaMA-Factory's words: answers to the test rounds by the adapter it trained."""
    options = study.respond
    drawn = options.decoding != "greedy"
    return (
        common(study, model, out)
        | {
            "do_predict": True,
            "predict_with_generate": True,
            "adapter_name_or_path": f"{out}/{model}",
            "eval_dataset": TEST,
            "output_dir": f"{out}/{model}/predict",
            "per_device_eval_batch_size": 1,
            "max_new_tokens": options.max_new_tokens,
            "do_sample": drawn,
        }
        | (options.sampling.model_dump() if drawn else {})
    )


def with_point(digits: re.Match[str]) -> str:
    """A whole number with a decimal point."""
    return f"{digits[0]}.0"


def yaml(settings: Settings) -> str:
    """Settings as YAML, whose scalars are JSON's, but for numbers such as 2e-05, which YAML 1.1 takes for text."""
    written = {name: json.dumps(value, ensure_ascii=False) for name, value in settings.items()}
    return "".join(f"{name}: {SHORT.sub(with_point, value)}\n" for name, value in written.items())
