"""A damaged checkpoint or adapter is a Problem that names its folder, and never a model with weights at random."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mi_llm.engine.counselor import with_adapter
from mi_llm.engine.load import load
from mi_llm.problem import Problem
from mi_llm.study import Study

FIRST_AND_SECOND = """
import sys, torch
from mi_llm.engine.load import prepare_torch
from mi_llm.study import Study

prepare_torch(Study.model_construct(threads=2))
square, values = torch.rand(2000, 2000), torch.rand(80_000) * 400
square @ square  # now both threads are there
for _ in range(50):
    values + 1
sys.exit(not torch.equal(values.cos(), values.cos()))
"""


@pytest.mark.slow
def test_the_first_call_of_a_function_has_the_digits_of_the_second() -> None:
    """Without `make_first_calls` two processes of five have others in one thread's half; ten hardly pass by chance."""
    for _ in range(10):
        subprocess.run([sys.executable, "-c", FIRST_AND_SECOND], check=True)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def forget_a_weight(path: Path) -> None:
    weights = load_file(path)
    weights.pop(min(weights))
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", cut),
        ("tokenizer.json", cut),
        ("model.safetensors", cut),
        ("model.safetensors", Path.unlink),
        ("model.safetensors", forget_a_weight),
    ],
)
def test_a_damaged_checkpoint_is_a_problem(checkpoints: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = checkpoints / "tiny-llama3"
    load(folder, "float32")
    damage(folder / name)
    with pytest.raises(Problem) as refusal:
        load(folder, "float32")
    assert refusal.value.where == str(folder)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("adapter_config.json", cut), ("adapter_model.safetensors", cut), ("adapter_model.safetensors", forget_a_weight)],
)
def test_a_damaged_adapter_is_a_problem(study: Study, checkpoints: Path, name: str, damage: Callable[[Path], None]) -> None:
    base, adapter = study.path("base", "tiny-llama3", "checkpoint"), study.path("finetune", "tiny-llama3", "adapter")
    base.parent.mkdir(parents=True)
    (checkpoints / "tiny-llama3").rename(base)
    get_peft_model(load(base, "float32")[0], LoraConfig(target_modules="all-linear")).save_pretrained(adapter)
    with_adapter(study, "tiny-llama3")
    damage(adapter / name)
    with pytest.raises(Problem) as refusal:
        with_adapter(study, "tiny-llama3")
    assert refusal.value.where == str(adapter)
