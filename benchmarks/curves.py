"""Writes the loss-curve reference of tests/engine/test_llamafactory.py: a short training by the bundle and by LLaMA-Factory.

Takes the bundle's tiny model of each architecture, makes a first adapter from a seed, trains both sides on sample dialogs,
and writes `curves.json`. With `ours FILE` it trains only our side, and writes its losses to FILE: the test compares them with
the reference. The whole needs LLaMA-Factory (benchmarks/peers.sh):

    python benchmarks/curves.py
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import peers
import training

from mi_llm import storage
from mi_llm.study import Lora

REFERENCE = peers.ROOT / "tests" / "references" / "llamafactory" / "curves.json"
TEMPLATES = {"tiny-baichuan2": "baichuan2", "tiny-glm4": "glm4", "tiny-llama3": "llama3"}
HOW = (
    "Both sides: one thread; the same model files, saved in float32; the adapter that mi_llm.models.finetune.adapt makes from a "
    "seed, saved once and given to LLaMA-Factory as adapter_name_or_path; LoRA rank 8, alpha 16, dropout 0, all linear layers; "
    "the first 20 sample dialogs as records in their order (LLaMA-Factory: disable_shuffling), cut to the cut-off by the same "
    "rule; the instruction in a system turn; loss on all counselor turns, averaged over the labeled tokens of a step; no "
    "packing on LLaMA-Factory's side; AdamW without weight decay, cosine schedule with warm-up, gradients clipped to norm 1; no "
    "gradient checkpointing; a number of records that the records of a step divide. The architectures are Llama in Baichuan2's "
    "layout (as many key and value heads as heads), GLM and Llama 3; LLaMA-Factory encodes with its templates glm4 and llama3, "
    "and baichuan2 as release 0.9.2 defined it."
)


def jobs(folder: Path) -> dict[str, training.Job]:
    """A training run of ten steps for each architecture, small enough to take a few seconds."""
    options = training.settings(
        batch=1, accumulation=2, epochs=1, cutoff=400, learning_rate=0.005, warmup_ratio=0.1, gradient_clip=1.0,
        instruction_placement="system", loss="replies", precision="float32", packed=True, checkpointing=False, four_bit=False,
        lora=Lora(rank=8, alpha=16, dropout=0.0, target_modules="all-linear"),
    )  # fmt: skip
    dialogs = training.sample_dialogs()[:20]
    made = {}
    for name, template in TEMPLATES.items():
        model = training.in_float32(training.MODELS / name, folder / name)
        made[name] = training.job(model, template, dialogs, options, folder=folder / f"{name}.start", threads=1)
    return made


def main() -> None:
    """Train both sides and write the reference."""
    with tempfile.TemporaryDirectory() as scratch:
        made = jobs(Path(scratch))
        theirs = {name: training.theirs(job) for name, job in made.items()}
        ours = {name: training.ours(job)["losses"] for name, job in made.items()}
        inputs_sha256 = digest(made)
    first_job = next(iter(made.values()))
    reference = {
        "made_by": f"benchmarks/curves.py with llamafactory {next(iter(theirs.values()))['version']}",
        "how_settings_were_made_equal": HOW,
        "settings": first_job["settings"],
        "inputs_sha256": inputs_sha256,
        "curves": {name: {"ours": ours[name], "llamafactory": theirs[name]["losses"]} for name in made},
    }
    storage.write_json(REFERENCE, reference)
    for name, curve in reference["curves"].items():
        largest = max(abs(a - b) for a, b in zip(curve["ours"], curve["llamafactory"], strict=True))
        print(f"{name}: from {curve['ours'][0]:.4f} to {curve['ours'][-1]:.4f}, largest difference {largest:.1e}")


def digest(made: dict[str, training.Job]) -> str:
    """SHA-256 of the dialogs, the instruction and the models: others have another curve."""
    told = hashlib.sha256()
    for name, job in made.items():
        told.update(json.dumps([job["dialogs"], job["instruction"]], ensure_ascii=False).encode("utf-8"))
        told.update((training.MODELS / name / "model.safetensors").read_bytes())
    return told.hexdigest()


def ours_only(file: Path) -> None:
    """Train our side and write its losses."""
    with tempfile.TemporaryDirectory() as scratch:
        made = jobs(Path(scratch))
        curves = {name: training.ours(job)["losses"] for name, job in made.items()}
        storage.write_json(file, {"inputs_sha256": digest(made), "curves": curves})


if __name__ == "__main__":
    os.environ.update(peers.ON_PROCESSOR)
    ours_only(Path(sys.argv[2])) if sys.argv[1:2] == ["ours"] else main()
