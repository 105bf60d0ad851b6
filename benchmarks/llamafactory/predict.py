"""Round-level answers by LLaMA-Factory itself, the other side of benchmark P1: `do_predict` with `predict_with_generate`, greedy.

Reads a job (JSON); writes the answers and the time they took. Run it in LLaMA-Factory's environment:

    .peers/llamafactory/bin/python benchmarks/llamafactory/predict.py JOB.json RESULT.json

JOB: `model` (folder, in the precision to compute in), `template` (baichuan2, glm4, llama3), `adapter` (folder or null; merged
into the model, as LLaMA-Factory does), `samples` (a JSON file of alpaca records with instruction, input, output, history,
system), `max_new_tokens`, `batch`, `cutoff` (longest prompt, in tokens), `threads`.

RESULT: `ids` (of each sample, the answer's token ids up to the first of `stop_ids`, which are LLaMA-Factory's), `texts`
(decoded without special tokens), `prompt_tokens`, `stop_ids`, `seconds` (in generation alone), `predict_seconds` (with
LLaMA-Factory's data loading and scores), `whole_seconds` (since the process started), `memory_mb`, `metrics` (LLaMA-Factory's
own scores), `version`.
"""

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import preparing
import psutil
import torch
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from llamafactory.train.tuner import run_exp


class Recording:
    """Listens to LLaMA-Factory's trainer: the answers of each batch, and how long they took."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.seconds = 0.0
        self.ids: list[list[int]] = []
        self.prompt_tokens: list[int] = []
        self.stops: list[int] = []
        self.texts: list[str] = []

    def listen(self) -> None:
        """Put an ear on the trainer's step."""
        step = CustomSeq2SeqTrainer.prediction_step

        def heard(trainer: Any, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            width, lengths = inputs["input_ids"].shape[1], inputs["attention_mask"].sum(1).tolist()
            start = time.perf_counter()
            result = step(trainer, model, inputs, *args, **kwargs)
            self.seconds += time.perf_counter() - start
            self.stops = [int(stop) for stop in trainer._gen_kwargs["eos_token_id"]]
            self.prompt_tokens += lengths
            answers = [self.cut(row) for row in result[1][:, width : width + self.most].tolist()]
            self.ids += answers
            self.texts += trainer.processing_class.batch_decode(answers, skip_special_tokens=True)
            return result

        CustomSeq2SeqTrainer.prediction_step = heard

    def cut(self, row: list[int]) -> list[int]:
        """An answer up to its stop token."""
        return row[: next((index for index, token in enumerate(row) if token in self.stops), len(row))]


def arguments(job: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """A job as LLaMA-Factory's arguments."""
    records = json.loads(Path(job["samples"]).read_text(encoding="utf-8"))
    return {
        "stage": "sft",
        "do_predict": True,
        "predict_with_generate": True,
        "model_name_or_path": str(preparing.model_folder(Path(job["model"]), job["template"], scratch / "model")),
        **({"adapter_name_or_path": job["adapter"]} if job["adapter"] else {}),
        "finetuning_type": "lora",
        "template": job["template"],
        "eval_dataset": "dialogs",
        "dataset_dir": str(preparing.data_folder(records, scratch / "data")),
        "cutoff_len": job["cutoff"],
        "per_device_eval_batch_size": job["batch"],
        "max_new_tokens": job["max_new_tokens"],
        "do_sample": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "overwrite_cache": True,
        "output_dir": str(scratch / "out"),
    }


def main(job_file: Path, result_file: Path) -> None:
    """Answer one job's samples and write what was recorded."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    preparing.know_baichuan2()
    recording = Recording(job["max_new_tokens"])
    recording.listen()
    with tempfile.TemporaryDirectory() as scratch:
        run_exp(arguments(job, Path(scratch)))
        metrics = json.loads((Path(scratch) / "out" / "predict_results.json").read_text(encoding="utf-8"))
    result = {
        "version": version("llamafactory"),
        "ids": recording.ids,
        "texts": recording.texts,
        "prompt_tokens": recording.prompt_tokens,
        "stop_ids": recording.stops,
        "seconds": recording.seconds,
        "predict_seconds": metrics["predict_runtime"],
        "whole_seconds": time.time() - psutil.Process().create_time(),
        "memory_mb": preparing.peak_memory(),
        "metrics": metrics,
    }
    result_file.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
