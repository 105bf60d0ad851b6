"""A study in miniature for tests: its parameters with some lines changed, adapters that no training made, a model server."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from mi_llm import storage
from mi_llm.engine.load import checkpoint, load
from mi_llm.models.base import base
from mi_llm.models.finetune import adapt, save_adapter
from mi_llm.models.pretrain import FORMAT_OF, Pretraining, build
from mi_llm.study import Study
from mi_llm.study import load as load_study

MODELS = ("tiny-baichuan2", "tiny-glm4", "tiny-llama3")


def study_with(**changes: str) -> Study:
    """The miniature's parameters with some lines changed: `key=value`, or `section_key=value` where several sections have it."""
    lines = Path("mini/params.yaml").read_text(encoding="utf-8").splitlines()
    sections = {line.split(":")[0]: number for number, line in enumerate(lines) if re.match(r"\w+:$", line)}
    for name, value in changes.items():
        section, _, key = name.partition("_")
        start, key = (sections[section], key) if section in sections else (0, name)
        places = [number for number, line in enumerate(lines) if number >= start and line.strip().startswith(f"{key}:")]
        assert start or len(places) == 1, f"several sections have {name}"
        index = places[0]
        lines[index] = f"{lines[index].split(':')[0]}: {value}"
    Path("mini/params.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_study(Path("mini/params.yaml"))


def study_of(model: str, chat_format: str = "checkpoint", license_key: str = "cc0-1.0", **changes: str) -> Study:
    """The miniature with one model alone, which lies in `mine/`: in its own chat format, unless another is named."""
    set_models({model: {"path": f"mine/{model}", "chat_format": chat_format, "license": license_key}})
    return study_with(**changes)


def set_models(models: dict[str, dict[str, str]]) -> None:
    """Put other models into the miniature's parameters; the first one talks with clients in danger, too."""
    file = Path("mini/params.yaml")
    content = storage.editable_yaml(file.read_text(encoding="utf-8"))
    content["models"] = models
    content["safety"]["models"] = [next(iter(models))]
    file.write_text(storage.dump_yaml(content), encoding="utf-8")


def give_adapter(study: Study, model: str, strength: float = 0.02) -> None:
    """Put a model's checkpoint in place, and an adapter that changes what it says."""
    base(study, model)
    loaded, _ = load(checkpoint(study, model), "float32")
    adapted = adapt(loaded, study.finetune, seed=1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, strength)
    save_adapter(adapted, study.folder / "finetune" / model / "adapter", model)


def untrained(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write untrained checkpoints of the three architectures, small enough to train in a test."""
    options = Pretraining(
        seed=1, threads=1, vocabulary=900, tokenizer_dialogs=60, hidden=32, intermediate=64, layers=2, heads=4, key_value_heads=2,
        block=64, batch=1, tokens=1, muon_learning_rate=0.01, adam_learning_rate=0.01, weight_decay=0.0, warmup_steps=1,
        bf16=False, compiled=False,
    )  # fmt: skip
    for name in FORMAT_OF:
        torch.manual_seed(1)
        build(name, options, tokenizer).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@contextmanager
def model_server(log: Path, faults: float = 0) -> Iterator[str]:
    """A model server, `model_server.py`, with a share of faults; gives its address."""
    command = [sys.executable, str(Path(__file__).parent / "model_server.py"), "--log", str(log), "--faults", str(faults)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(running.stdout.readline())}/v1"
        finally:
            running.kill()
