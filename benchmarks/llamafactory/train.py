"""LoRA fine-tuning by LLaMA-Factory itself: the other side of the loss curves and of benchmark P2.

Reads a job (JSON: model folder, template, adapter to start from, dialogs as rounds, settings); trains through LLaMA-Factory's
own `run_exp`, records in the order given; writes losses, learning rates, tokens, seconds and memory. Run it in
LLaMA-Factory's environment:

    .peers/llamafactory/bin/python benchmarks/llamafactory/train.py JOB.json RESULT.json
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import preparing
import torch
from llamafactory.train.tuner import run_exp
from transformers import TrainerCallback


class Record(TrainerCallback):  # type: ignore[misc]
    """Keeps what happens in training: the loss of every step, when training began and ended, how many tokens it saw."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.times: list[float] = []
        self.tokens = 0
        self.memory_before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training is about to take its first step."""
        epochs = int(args.num_train_epochs)
        self.tokens = epochs * sum(map(len, kwargs["train_dataloader"].dataset["input_ids"]))
        self.memory_before = preparing.peak_memory()
        self.times.append(time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        self.times.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """A step's loss is known; the last log, of the whole run, has none."""
        if "loss" in logs:
            self.losses.append(logs["loss"])
            self.rates.append(logs["learning_rate"])


def arguments(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """A job as LLaMA-Factory's arguments; its settings are named as in the study's section `finetune`."""
    settings = job["settings"]
    records = [preparing.alpaca(rounds, job["instruction"], settings["instruction_placement"]) for rounds in job["dialogs"]]
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(preparing.model_folder(Path(job["model"]), job["template"], scratch / "model")),
        "adapter_name_or_path": job["adapter"],
        "template": job["template"],
        "dataset": "dialogs",
        "dataset_dir": str(preparing.data_folder(records, scratch / "data")),
        "cutoff_len": settings["cutoff"],
        "mask_history": settings["loss"] == "last",
        "finetuning_type": "lora",
        "lora_rank": settings["lora"]["rank"],
        "lora_alpha": settings["lora"]["alpha"],
        "lora_dropout": settings["lora"]["dropout"],
        "lora_target": "all",
        "disable_gradient_checkpointing": not settings["checkpointing"],
        "disable_shuffling": True,
        "per_device_train_batch_size": settings["batch"],
        "gradient_accumulation_steps": settings["accumulation"],
        "num_train_epochs": settings["epochs"],
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": settings["scheduler"],
        "warmup_ratio": settings["warmup_ratio"],
        "max_grad_norm": settings["gradient_clip"],
        "weight_decay": 0.0,
        "optim": "adamw_torch",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "overwrite_cache": True,
        "output_dir": str(scratch / "out"),
    }


def main(job_file: Path, result_file: Path) -> None:
    """Train one job and write what was recorded."""
    began = time.perf_counter()
    job = json.loads(job_file.read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    preparing.know_baichuan2()
    record = Record()
    with tempfile.TemporaryDirectory() as scratch:
        run_exp(arguments(job, Path(scratch)), [record])
    result = {
        "version": version("llamafactory"),
        "losses": record.losses,
        "learning_rates": record.rates,
        "tokens": record.tokens,
        "seconds": record.times[-1] - record.times[0],
        "step_seconds": [end - start for start, end in zip(record.times, record.times[1:], strict=False)],
        "whole_seconds": time.perf_counter() - began,
        "memory_before_mb": record.memory_before,
        "memory_mb": preparing.peak_memory(),
    }
    result_file.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
