"""P4, LoRA at the paper's size on NVIDIA GPUs: tokens/s, memory and share of the BF16 peak, with and without checkpointing.

The model has GLM-4-9B's shape and random weights; every record is as long as the cut-off, and the share of its tokens that is
labeled is the one `mi-llm doctor` assumes. Each way to train that should fit without a 4-bit base runs by itself, through
`finetune`'s own functions: in one process, in one for each card, and in as many that share the base out (FSDP). The peer is
the card: its peak by NVIDIA's data sheet, and beside each run the product of two large matrices. Goal: what `doctor` promises,
in speed and in memory.

    python benchmarks/run.py P4
    python benchmarks/roofline.py trial     # a model of 0.2 million parameters, here, with or without a GPU: does it run?
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
import torch
from results import Result, Skipped, show, spread
from root_study import entry_of_root
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig, PreTrainedModel

from mi_llm.engine.estimate import LABELED, SHARE, Card, Plan, Shape, here, plans, weight_bytes
from mi_llm.engine.load import PRECISION, prepare_torch
from mi_llm.engine.processes import Processes
from mi_llm.engine.template import IGNORED, Encoded
from mi_llm.models.finetune import Resume, adapt, fit, share_out
from mi_llm.study import Finetune
from mi_llm.study import load as load_study

MODEL = "glm-4-9b"
STEPS = 3  # measured, after one that is not
ROOM = 1.05  # times the estimate
SEED = 1
TRIAL = Shape(
    layers=2, hidden=64, heads=4, key_value_heads=2, intermediate=160, vocabulary=512, fused_gate_up=True, qkv_bias=True
)  # fmt: skip


def ways(shape: Shape, options: Finetune, card: Card) -> list[Plan]:
    """With and without checkpointing: one process, and one a card, each with the base or with a share of it; what should fit."""
    fitting = [way for way in plans(shape, options, card.memory, card.count) if way.fits and not way.four_bit]
    return sorted(fitting, key=lambda way: (way.checkpointing, way.processes, way.shared))


def paper_settings() -> Finetune:
    """The paper's training settings, without checkpoints on disk."""
    return load_study(peers.ROOT / "params.yaml").finetune.model_copy(update={"save_every": 10**9})


def random_model(shape: Shape, precision: str, device: torch.device) -> PreTrainedModel:
    """An untrained model of a shape, made where it will be used: a GLM if gate and up projection are one matrix, else a Llama."""
    config = (GlmConfig if shape.fused_gate_up else LlamaConfig)(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        attention_bias=shape.qkv_bias,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=PRECISION[precision], attn_implementation="sdpa")


def random_records(count: int, length: int, vocabulary: int) -> list[Encoded]:
    """Records of random tokens, of which the last ones are labeled."""
    chance, records = random.Random(SEED), []
    for _ in range(count):
        ids = [chance.randrange(vocabulary) for _ in range(length)]
        unlabeled = round((1 - LABELED) * length)
        records.append(Encoded(ids, [IGNORED] * unlabeled + ids[unlabeled:]))
    return records


def product_rate(device: torch.device, size: int) -> float:
    """Operations a second of products of two square BF16 matrices."""
    matrix, products = torch.randn(size, size, device=device).bfloat16(), 20
    (matrix @ matrix).sum().item()
    began = time.perf_counter()
    for _ in range(products):
        result = matrix @ matrix
    result.sum().item()  # waits until all are done
    return products * 2 * size**3 / (time.perf_counter() - began)


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """What one process measures of one way: seconds of each step, the most memory it held, and the rate of matrix products."""
    shape, options, processes = Shape.model_validate(job["shape"]), Finetune.model_validate(job["settings"]), Processes()
    study = load_study(peers.ROOT / "params.yaml")
    prepare_torch(study.model_copy(update={"threads": max(1, (os.cpu_count() or 1) // processes.beside)}))
    rate = product_rate(processes.device, job["product"])
    device = processes.device if job["whole_fits"] else torch.device("cpu")
    adapted = adapt(random_model(shape, options.precision, device), options, SEED)
    if job["shared"]:
        share_out(adapted)
    on_gpu = processes.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    records = random_records(options.batch * options.accumulation, options.cutoff, shape.vocabulary)
    seconds = list[float]()
    for step in range(1 + STEPS):
        with tempfile.TemporaryDirectory() as scratch:
            began = time.perf_counter()
            fit(
                adapted,
                records,
                options,
                indices=range(len(records)),
                padding=0,
                resume=Resume(Path(scratch), "benchmark"),
                title=f"step {step}",
            )
            seconds.append(time.perf_counter() - began)
    held = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds[1:], "memory": held, "product_rate": rate}


def run(job: dict[str, Any], processes: int) -> dict[str, Any]:
    """Measure one way in processes of its own; the answer is the first one's, or the end of what they said when they failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), __file__, "way"]

    def work(asked: Path, answer: Path) -> None:
        done = subprocess.run([*command, asked, answer], capture_output=True, text=True, check=False)
        if done.returncode:
            answer.write_text(json.dumps({"failed": done.stderr[-4000:]}), encoding="utf-8")

    return peers.exchanged(job, work)


def compare(way: Plan, shape: Shape, options: Finetune, card: Card, product: int) -> dict[str, Any]:
    """One way's figures beside the card's and beside the estimate."""
    settings = options.model_copy(update={"checkpointing": way.checkpointing}).model_dump(mode="json")
    job = {
        "shape": shape.model_dump(),
        "settings": settings,
        "shared": way.shared,
        "whole_fits": weight_bytes(shape, options.precision) < 0.9 * card.memory,
        "product": product,
    }
    measurement = run(job, way.processes)
    if "failed" in measurement:
        print(f"P4: {way.name} failed:\n{measurement['failed']}", file=sys.stderr)
        return measurement
    tokens = options.batch * options.accumulation * options.cutoff
    speeds = [tokens / seconds for seconds in measurement["seconds"]]
    not_done = 4 * shape.embedding * (1 - LABELED)  # logits of tokens without a label are not computed
    rates = [speed * (way.flops - not_done) / way.processes for speed in speeds]
    peak = card.peak or measurement["product_rate"]
    return {
        "tokens_per_second": spread(speeds),
        "tflops_a_card": spread([rate / 1e12 for rate in rates]),
        "peak_tflops": round(peak / 1e12, 3),
        "product_tflops": round(measurement["product_rate"] / 1e12, 3),
        "share_of_peak": spread([rate / peak for rate in rates]),
        "share_of_products": spread([rate / measurement["product_rate"] for rate in rates]),
        "memory_gib": round(measurement["memory"] / 2**30, 3),
        # what PyTorch's own counter does not see is left out of both
        "estimated_memory_gib": round((way.memory.total - way.memory.workspace) / 2**30, 3),
    }


def compare_all(shape: Shape, options: Finetune, card: Card, product: int) -> Result:
    """Measure every way that should fit; the ratio is the least share of the card's peak, or of products if that is not known."""
    chosen = ways(shape, options, card)
    if not chosen:
        raise Skipped(f"no way to train {shape.parameters / 1e9:.1f}e9 parameters in BF16 fits {card.name}")
    everything = {way.name: compare(way, shape, options, card, product) for way in chosen}
    compared = {name: numbers for name, numbers in everything.items() if "failed" not in numbers}
    if not compared:
        raise RuntimeError("every way to train failed; see above")
    least = min(compared, key=lambda name: compared[name]["share_of_peak"]["median"])
    share = compared[least]["share_of_peak"]["median"]
    within = all(numbers["memory_gib"] <= ROOM * numbers["estimated_memory_gib"] for numbers in compared.values())
    return {
        "id": "P4",
        "work": f"LoRA of {shape.parameters:,} random parameters, {card.count} x {card.name}; shown: {least}",
        "ours": compared[least],
        "peers": {"the card": {name: compared[least][name] for name in ("peak_tflops", "product_tflops")}},
        "ratio": share,
        "goal": f"at least {SHARE:g} of the card's peak in every way, in no more than {ROOM:g} times the memory estimated",
        "met": share >= SHARE and within and compared == everything,
        "details": everything,
    }


def main() -> Result:
    """Measure GLM-4-9B's shape with the paper's settings on the cards that are here."""
    if not torch.cuda.is_available():
        raise Skipped("no NVIDIA GPU here; that the benchmark runs is seen with: python benchmarks/roofline.py trial")
    shape = entry_of_root(MODEL).shape
    return compare_all(shape, paper_settings(), here(), product=8192)


def trial() -> Result:
    """Measure a miniature of it, without a GPU as if there were two; the figures mean nothing."""
    card = here()
    card = card if torch.cuda.is_available() else replace(card, count=2)
    return compare_all(TRIAL, paper_settings().model_copy(update={"cutoff": 64, "accumulation": 2}), card, product=256)


if __name__ == "__main__":
    if sys.argv[1:2] == ["way"]:
        answered = measured(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
        if Processes().main:
            Path(sys.argv[3]).write_text(json.dumps(answered), encoding="utf-8")
    else:
        outcome = trial()
        show(outcome)
        for name, numbers in outcome["details"].items():
            if "failed" in numbers:
                sys.exit(f"{name} failed")
            print(
                f"  {name}: {numbers['tokens_per_second']['median']:,.0f} tokens/s, {numbers['memory_gib']:.1f} GiB held,",
                end=" ",
            )
            print(f"{numbers['estimated_memory_gib']:.1f} GiB estimated")
