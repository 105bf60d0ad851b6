"""Stage `base@model`: put one base model's checkpoint in place.

Reads the shipped tiny checkpoint `<weights>/<model>/`. Writes `base/<model>/checkpoint/` with a config, weights and
tokenizer that plain transformers classes load, without remote code.
"""

import shutil
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from mi_llm import storage
from mi_llm.models.template import FORMATS, ChatFormat
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Study

CHECKPOINT = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def checkpoint(study: Study, model: str) -> Path:
    """Where the base model's checkpoint lies."""
    return study.folder / "base" / model / "checkpoint"


def chat_format(study: Study, model: str) -> ChatFormat:
    """The chat format that the study names for a model."""
    return FORMATS[study.base.formats[model]]


def load(folder: Path, precision: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint with native classes: no remote code, no network."""
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # meant for its own callers
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=PRECISION[precision], trust_remote_code=False, local_files_only=True, attn_implementation="sdpa"
    )
    return model, tokenizer


def prepare_torch(study: Study) -> None:
    """Fixed thread count and deterministic algorithms: the same run gives the same bytes."""
    torch.set_num_threads(study.threads)
    torch.use_deterministic_algorithms(True)


def base(study: Study, model: str) -> None:
    """Put the checkpoint in place; see the module."""
    if study.base.source == "hub":
        raise Problem(
            f"{study.params}: base.source", "hub", "folder: loading the paper's models from the hub is not built yet",
            "run the miniature: ./reproduce.sh mini",
        )  # fmt: skip
    source = Path(study.weights) / model
    with stage(study, "base", model, [source]) as out:
        target = checkpoint(study, model)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in CHECKPOINT:
            with storage.replacing(target / name) as file:
                file.write((source / name).read_bytes())
        loaded, tokenizer = load(target, "float32")
        numbers = {"parameters": sum(weight.numel() for weight in loaded.parameters()), "vocabulary": len(tokenizer)}
        storage.write_json(out / "metrics.json", numbers)
