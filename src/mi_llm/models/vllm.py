"""A tuned adapter in the form that vLLM serves: `finetune/<model>/vllm/`, beside peft's own in `adapter/`.

vLLM knows a layer's gate and up projections by Llama's names, `gate_proj` and `up_proj`, and refuses an adapter that names
anything else. transformers' GLM has one layer for both, `gate_up_proj`: the first half of its outputs is the gate, the second is
up. Its adapter is therefore written as the adapters of two layers, each with the same A and with its half of B's rows, which adds
the same to every output. Adapters of Llama's layout are the same in both folders, so that one path serves every model.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from mi_llm import storage

FUSED, HALVES = "gate_up_proj", ("gate_proj", "up_proj")


def write_for_vllm(adapter: Path, out: Path) -> None:
    """Write an adapter that peft has saved as vLLM takes it; equal adapters give equal bytes."""
    weights: dict[str, torch.Tensor] = {}
    for name, weight in load_file(adapter / "adapter_model.safetensors").items():
        weights |= halved(name, weight) if f".{FUSED}." in name else {name: weight}
    config = storage.read_json(adapter / "adapter_config.json")
    targets = {target.replace(FUSED, half) for target in config["target_modules"] for half in HALVES}
    shutil.rmtree(out, ignore_errors=True)
    storage.write_json(out / "adapter_config.json", config | {"target_modules": sorted(targets)})
    with storage.replacing(out / "adapter_model.safetensors") as file:
        file.write(save(weights, {"format": "pt"}))


def halved(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """The A [rank, inputs] or B [2 * outputs, rank] of a `gate_up_proj` as those of `gate_proj` and `up_proj`."""
    parts = [weight, weight] if ".lora_A." in name else weight.chunk(2)
    return {name.replace(FUSED, half): part.clone() for half, part in zip(HALVES, parts, strict=True)}
