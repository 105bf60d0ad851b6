"""What only a GPU can settle, at the paper's size with random weights; `run.sh` runs one check after the other.

environment      versions, and which of PyTorch's kernels takes each attention call of the bundle
determinism      a training step's gradients three times over: as the bundle sets PyTorch up, and with its two deterministic modes
attention        attention record by record of a packed row, in milliseconds a layer
checkpoint       a random GLM-4-9B in BF16 on disk, as stage `base` leaves it, and dialogs of 2,048 tokens: the next ones need it
finetune         `mi-llm finetune` at the root study's settings: SIGKILL after the first save, then resumed; speed and memory
respond          stage `respond`: base and tuned replies; speed and memory
keys_and_values  Baichuan2-7B's shape, whose heads all have keys and values of their own: memory and speed of 32 rounds
four_bit         `mi-llm finetune` and `mi-llm respond` on a base in 4 bits, where bitsandbytes is here

With `--trial` every check runs on models of a million parameters and less, on a processor too. Results go to `results.json`.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from roofline import paper_settings, random_model
from root_study import ROOT, entry_of_root, only, sample_dialogs, write_split, write_study
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoTokenizer

from mi_llm import storage
from mi_llm.dialog import Dialog
from mi_llm.engine.branching import Branching, branching_attention, greedy, plan
from mi_llm.engine.estimate import Shape
from mi_llm.engine.load import prepare_torch
from mi_llm.engine.packing import attend
from mi_llm.engine.template import IGNORED, Encoded
from mi_llm.models.finetune import Training, adapt, make_ready
from mi_llm.models.respond import respond as respond_stage
from mi_llm.study import ARMS, load

TRIAL = "--trial" in sys.argv
WORK = Path(os.environ["WORK"]).resolve()
STUDY, RUNS = WORK / "study", WORK / "study" / "runs" / "paper"
TOKENIZER = ROOT / "pretrain" / "models" / "tiny-glm4"  # as good as any: the weights are random
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
MODEL, MANY_KEYS = "glm-4-9b", "baichuan2-7b"
SEED = 1
THREADS = 1 if TRIAL else os.cpu_count() or 1
RECORDS, RECORD_DIALOGS = (32, 2) if TRIAL else (64, 8)  # dialogs of the sample in each record
TOKENS, WRITTEN, REPLY = (64, 8, 16) if TRIAL else (2048, 160, 512)  # of a record; of a reply in `respond`, in `keys_and_values`
DIALOGS, ROUNDS, TURN = 4, 8, 8 if TRIAL else 90  # of `keys_and_values`: rounds of each dialog, tokens of a turn
HEADS, HEAD = 32, 128  # of all three models
# The keys of the root's params.yaml that are not the root's here.
CHANGED: dict[str, Any] = {
    "threads": THREADS,
    **only(MODEL),
    "finetune.instruction": "src/mi_llm/language/zh/prompts/counselor.jinja",
    "finetune.max_samples": RECORDS,
    "finetune.epochs": 1,
    "finetune.cutoff": TOKENS,
    "finetune.save_every": 2,
    "finetune.log_every": 1,
    "respond.max_new_tokens": WRITTEN,
}


def shape_of(model: str) -> Shape:
    """A model's shape, or in the trial that of a small one of its kind."""
    shape = entry_of_root(model).shape
    small = {"layers": 2, "hidden": 128, "heads": 8, "key_value_heads": max(2, 8 * shape.key_value_heads // shape.heads)}
    return shape.model_copy(update=small | {"intermediate": 192, "vocabulary": 8192}) if TRIAL else shape


def note(check: str, **figures: Any) -> None:
    """Add figures of a check to the results."""
    path = WORK / "results.json"
    results = storage.read_json(path) if path.exists() else {}
    results[check] = results.get(check, {}) | figures
    storage.write_json(path, results)
    print(check, json.dumps(figures), flush=True)


def finished() -> float:
    """Seconds of a clock, when the GPU has done all that it was told."""
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def most_memory() -> float | None:
    """GiB of the GPU that this process held at most."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if ON_GPU else None


def random_ids(count: int, vocabulary: int, chance: random.Random) -> list[int]:
    """Random tokens."""
    return [chance.randrange(vocabulary) for _ in range(count)]


def prepare() -> None:
    """Set PyTorch up as the stages do."""
    prepare_torch(load(ROOT / "params.yaml").model_copy(update={"threads": THREADS}))


# ---- the checks


def environment() -> None:
    """Note versions and, for each attention call, which kernels take it."""
    packages = ("torch", "transformers", "peft", "accelerate")
    card = torch.cuda.get_device_name() if ON_GPU else None
    note("environment", card=card, cuda=torch.version.cuda, **{package: version(package) for package in packages})
    if ON_GPU:
        asked = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        note("environment", driver_and_memory=subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip())
    prepare()
    for name, key_value_heads, masked, training in (
        ("finetune, GLM-4", 2, False, True),
        ("finetune, Baichuan2", HEADS, False, True),
        ("respond, trunk, GLM-4", 2, False, False),
        ("respond, suffix, GLM-4", 2, True, False),
        ("respond, suffix, Baichuan2", HEADS, True, False),
    ):
        for dtype in (torch.bfloat16, torch.float32):
            note("environment", **{f"{name}, {dtype}": kernels(key_value_heads, dtype, masked=masked, training=training)})


def kernels(key_value_heads: int, dtype: torch.dtype, *, masked: bool, training: bool) -> list[str]:
    """Which of PyTorch's attention kernels take a call like the bundle's, and why the others do not."""
    queries, keys = 96, 700 if masked else 96
    query = torch.randn(1, HEADS, queries, HEAD, device=DEVICE, dtype=dtype, requires_grad=training)
    key = torch.randn(1, key_value_heads, keys, HEAD, device=DEVICE, dtype=dtype, requires_grad=training)
    mask = torch.ones(queries, keys, dtype=torch.bool, device=DEVICE).tril(keys - queries) if masked else None
    answers = []
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        try:
            with sdpa_kernel(kernel):
                out = scaled_dot_product_attention(query, key, key, attn_mask=mask, is_causal=not masked, enable_gqa=True)
                if training:
                    out.sum().backward()
            answers.append(kernel.name)
        except RuntimeError as error:
            answers.append(f"not {kernel.name}: {str(error).splitlines()[0][:60]}")
    return answers


def determinism() -> None:
    """Note whether a step's gradients are the same three times over, in each mode."""
    prepare()
    options, shape, chance = paper_settings().model_copy(update={"cutoff": TOKENS}), shape_of(MODEL), random.Random(SEED)
    fewer_layers = shape.model_copy(update={"layers": 2 if TRIAL else 8})
    adapted = adapt(random_model(fewer_layers, options.precision, DEVICE), options, SEED)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:  # begins at zero, and then no gradient would reach the other half
                weight.normal_(0, 0.02)
    make_ready(adapted, options)
    records = []
    for length in (TOKENS // 2, TOKENS // 4, TOKENS // 4):
        ids = random_ids(length, shape.vocabulary, chance)
        records.append(Encoded(ids, [IGNORED] * 8 + ids[8:]))
    training = Training(adapted, records, options, 0)
    note("determinism", as_the_bundle_sets_it=same_gradients(training))
    for mode, warn_only in (("warn_only", True), ("strict", False)):
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
        note("determinism", **{mode: same_gradients(training)})


def same_gradients(training: Training) -> dict[str, Any]:
    """Compute one micro-batch's gradients three times: whether they are the same, by how much not, and what PyTorch says."""
    gradients = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for _ in range(3):
                training.backward(range(len(training.encoded)))
                weights = training.trainable.weights.values()
                gradients.append(torch.cat([weight.grad.flatten() for weight in weights]).clone())
                for weight in weights:
                    weight.grad = None
        except RuntimeError as error:
            return {"raises": str(error)[:300]}
    differences = [(gradients[0] - other).abs().max().item() for other in gradients[1:]]
    messages = sorted({str(warning.message).splitlines()[0][:140] for warning in caught})
    return {"same": max(differences) == 0, "largest_difference": max(differences), "warnings": messages}


def attention() -> None:
    """Note how long attention takes in a row of one, eight and 32 records."""
    repetitions = 3 if TRIAL else 50
    for sizes in ([TOKENS], [TOKENS // 8] * 8, [TOKENS // 32] * 32):
        query, key, value = (
            torch.randn(1, heads, TOKENS, HEAD, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
            for heads in (HEADS, 2, 2)
        )

        def forward_and_backward(
            sizes: list[int] = sizes, query: torch.Tensor = query, key: torch.Tensor = key, value: torch.Tensor = value
        ) -> None:
            out, _ = attend(torch.nn.Identity(), query, key, value, None, scaling=HEAD**-0.5, dropout=0.0, sizes=sizes)
            out.sum().backward()

        forward_and_backward()
        began = finished()
        for _ in range(repetitions):
            forward_and_backward()
        milliseconds = (finished() - began) / repetitions * 1000
        note("attention", **{f"{len(sizes)} records of {sizes[0]} tokens, ms": round(milliseconds, 3)})


def checkpoint() -> None:
    """Write the model, the study and its dialogs."""
    shutil.rmtree(STUDY, ignore_errors=True)
    folder = RUNS / "base" / MODEL / "checkpoint"
    folder.mkdir(parents=True)
    began = finished()
    model = random_model(shape_of(MODEL), "bfloat16", DEVICE)
    note("checkpoint", made_s=round(finished() - began, 1), parameters=sum(weight.numel() for weight in model.parameters()))
    began = finished()
    model.save_pretrained(folder, max_shard_size="5GB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    AutoTokenizer.from_pretrained(folder)
    gigabytes = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
    note("checkpoint", saved_s=round(finished() - began, 1), gb=round(gigabytes, 3))
    write_study(STUDY, CHANGED)
    dialogs, chance = sample_dialogs(), random.Random(SEED)
    chosen = [chance.sample(dialogs, RECORD_DIALOGS) for _ in range(RECORDS)]
    long_dialogs = [
        Dialog(id=f"long-{number}", source="benchmark", turns=tuple(turn for dialog in parts for turn in dialog.turns))
        for number, parts in enumerate(chosen)
    ]
    count = 2 if TRIAL else 12
    write_split(STUDY, long_dialogs, [sample for dialog in dialogs[:count] for sample in dialog.rounds()])


def command(stage: str, parameters: str = "params.yaml") -> subprocess.Popen[str]:
    """Start a stage by its own command; what it says goes on the screen."""
    words = [sys.executable, "-m", "mi_llm", stage, MODEL, "--study", parameters]
    return subprocess.Popen(words, cwd=STUDY, start_new_session=True, text=True)


def finetune() -> None:
    """Kill fine-tuning after its first save, and let it go on."""
    state, began = RUNS / "finetune" / f".{MODEL}.resume" / "state.pt", time.monotonic()
    running = command("finetune")
    while not state.exists() and running.poll() is None:
        time.sleep(0.1)
    saved = time.monotonic() - began
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGKILL)
    note("finetune", first_save_after_s=round(saved, 1), killed_rc=running.wait())
    began = time.monotonic()
    resumed = command("finetune").wait()
    note("finetune", resumed_rc=resumed, resumed_s=round(time.monotonic() - began, 1))
    pace = list(storage.read_lines(RUNS / ".speed" / f"finetune-{MODEL}.jsonl"))
    note("finetune", pace=pace[-1], metrics=storage.read_json(RUNS / "finetune" / MODEL / "metrics.json"))


def respond() -> None:
    """Answer the test rounds with both arms, in this process, which then knows the GPU's memory."""
    os.chdir(STUDY)
    began = time.monotonic()
    respond_stage(load(Path("params.yaml")), MODEL)
    note("respond", seconds=round(time.monotonic() - began, 1), memory_gib=most_memory())
    for arm in ARMS:
        times = list(storage.read_lines(RUNS / ".speed" / f"respond-{MODEL}.{arm}.jsonl"))
        tokens, seconds = sum(reply["tokens"] for reply in times), max(reply["seconds"] for reply in times)
        note("respond", **{arm: {"rounds": len(times), "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1)}})


def keys_and_values() -> None:
    """Note memory and speed while 32 rounds write long replies."""
    prepare()
    shape, chance = shape_of(MANY_KEYS), random.Random(SEED)
    model = random_model(shape, "bfloat16", DEVICE).eval()
    branching_attention(model)
    weights = most_memory()
    plans = []
    for dialog in range(DIALOGS):
        dialog_ids, question = random_ids(TURN * ROUNDS, shape.vocabulary, chance), random_ids(40, shape.vocabulary, chance)
        prompts = [dialog_ids[: TURN * (number + 1)] + question for number in range(ROUNDS)]
        plans.append(plan(range(dialog * ROUNDS, (dialog + 1) * ROUNDS), prompts))

    def milliseconds(tokens: int) -> float:
        began = finished()
        replies = list(Branching(model, [-1], DIALOGS * ROUNDS, tokens, greedy).answers(plans))
        assert [len(ids) for _, ids, _ in replies] == [tokens] * DIALOGS * ROUNDS
        return round((finished() - began) / tokens * 1000, 2)

    note("keys_and_values", ms_a_token=milliseconds(REPLY), tokens=REPLY, weights_gib=weights, memory_gib=most_memory())
    torch.use_deterministic_algorithms(False)
    note("keys_and_values", ms_a_token_not_deterministic=milliseconds(REPLY // 4))


def four_bit() -> None:
    """Fine-tune and answer with the base in 4 bits."""
    if not ON_GPU or not find_spec("bitsandbytes"):
        note("four_bit", skipped="no GPU" if not ON_GPU else "no bitsandbytes")
        return
    write_study(STUDY, CHANGED | {"finetune.four_bit": True, "finetune.max_samples": 8}, "four_bit.yaml")
    for stage in ("finetune", "respond"):
        began = time.monotonic()
        status = command(stage, "four_bit.yaml").wait()
        note("four_bit", **{f"{stage}_rc": status, f"{stage}_s": round(time.monotonic() - began, 1)})
        if status:
            raise SystemExit(f"four_bit: {stage} ended with status {status}")


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (environment, determinism, attention, checkpoint, finetune, respond, keys_and_values, four_bit)
}

if __name__ == "__main__":
    WORK.mkdir(parents=True, exist_ok=True)
    CHECKS[sys.argv[1]]()
