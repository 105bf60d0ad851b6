"""The doctor and its estimates: counted against real models, adapters and passes; the GPU found by a real `nvidia-smi`."""

import math
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from repository import PROGRAMS, ROOT
from tiny import MODELS
from torch.utils.flop_counter import FlopCounterMode

from mi_llm.doctor import doctor, fitting, machine, outdated, ways_on
from mi_llm.engine.estimate import (
    Card,
    Load,
    Shape,
    after_tuning,
    flops_per_token,
    forecast,
    layer_bytes,
    peak_of,
    plans,
    shape_of,
    weight_bytes,
    worst,
)
from mi_llm.engine.load import config_of, load
from mi_llm.engine.nvidia import gpus
from mi_llm.engine.packing import pack
from mi_llm.engine.template import Encoded
from mi_llm.models import hub
from mi_llm.models.base import header
from mi_llm.models.finetune import adapt, make_ready
from mi_llm.needs import needs
from mi_llm.study import Finetune, Study
from mi_llm.study import load as load_study

GIB = 2**30
LLAMA = {"layers": 32, "hidden": 4096, "heads": 32, "key_value_heads": 8, "intermediate": 14336, "vocabulary": 128256}


@pytest.fixture
def options() -> Finetune:
    """The paper's training settings."""
    return load_study(ROOT / "params.yaml").finetune


@pytest.fixture
def fresh() -> Iterator[None]:
    """Look at the machine anew, before and after."""
    machine.cache_clear()
    yield
    machine.cache_clear()


def changed(options: Finetune, **values: Any) -> Finetune:
    return options.model_copy(update=values)


def tuned(folder: Path, options: Finetune) -> tuple[PeftModel, Shape]:
    """A model as fine-tuning sets it up, with the shape that its checkpoint tells."""
    model, _ = load(folder, options.precision)
    adapted = adapt(model, options, seed=1)
    make_ready(adapted, options)
    model.enable_input_require_grads()  # else the first layer is spared the gradient of its input
    return adapted, shape_of(config_of(folder))


def passed(model: PeftModel, tokens: int) -> torch.Tensor:
    """One record through the decoder layers, as training passes it."""
    record = Encoded([number % 900 for number in range(tokens)], [1] * tokens)
    bfloat16 = model.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = model.base_model.model.model(**pack([record], torch.device("cpu")).inputs, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


def kept(model: PeftModel, tokens: int) -> int:
    """Bytes that are kept of one forward pass through the decoder layers, parameters left out."""
    parameters = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    tensors: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            tensors[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = passed(model, tokens)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_bytes_are_those_of_real_checkpoints_and_adapters(name: str, checkpoints: Path, options: Finetune) -> None:
    model, shape = tuned(checkpoints / name, changed(options, precision="float32"))
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    assert (shape.adapter(8), shape.parameters) == (trainable, frozen)
    file = checkpoints / name / "model.safetensors"
    assert sum(torch.Size(size).numel() for size in header(file).values()) == shape.parameters
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
    assert weight_bytes(shape, "float32") == file.stat().st_size - 8 - length


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_what_is_kept(name: str, precision: str, dropout: float, checkpoints: Path, options: Finetune) -> None:
    lora = options.lora.model_copy(update={"dropout": dropout})
    model, shape = tuned(checkpoints / name, changed(options, precision=precision, checkpointing=False, lora=lora))
    layers = model.base_model.model.model.layers
    two_layers = kept(model, 1024)
    del layers[1]
    one_layer = kept(model, 1024)
    assert (two_layers - one_layer) / 1024 == pytest.approx(layer_bytes(shape, precision, 8, dropout > 0), rel=0.025)


def test_with_checkpointing_a_layer_keeps_its_input_only(checkpoints: Path, options: Finetune) -> None:
    model, shape = tuned(checkpoints / "tiny-llama3", changed(options, precision="bfloat16", checkpointing=True))
    layers = model.base_model.model.model.layers
    two = kept(model, 256)
    layers.insert(0, deepcopy(layers[0]))
    model.base_model.model.config.num_hidden_layers += 1
    assert kept(model, 256) - two == 256 * 2 * shape.hidden


def product_flops(_: Sequence[int], left: Sequence[int], right: Sequence[int], **more: Any) -> int:
    """Operations of a product that is added in place, which PyTorch's counter does not know; it hands over shapes."""
    return 2 * math.prod(left) * right[1]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_operations_are_those_of_a_real_step(name: str, checkpointing: bool, checkpoints: Path, options: Finetune) -> None:
    model, shape = tuned(checkpoints / name, changed(options, precision="float32", checkpointing=checkpointing))
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product_flops}) as counter:
        model.base_model.model.lm_head(passed(model, 64)).sum().backward()
    attention = sum(count for kind, count in counter.get_flop_counts()["Global"].items() if "attention" in str(kind))
    linear = counter.get_total_flops() - attention
    assert linear / 64 == pytest.approx(flops_per_token(shape, 8, checkpointing, context=0), rel=0.005)


def test_the_papers_models_have_the_sizes_that_are_known_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    paper = load_study(Path("params.yaml"))
    known = {model: hub.entry_of(paper, model) for model in paper.models}
    assert [entry.shape.adapter(8) for entry in known.values()] == [19988480, 23797760, 20971520]
    published = [entry.shape.adapter(8, bool(entry.original and entry.original.joined_qkv)) for entry in known.values()]
    assert published == [17891328, 21176320, 20971520]
    told = (ROOT / "docs/determinism.md").read_text(encoding="utf-8")
    for there, entry in zip(published, known.values(), strict=True):
        assert f"| {there:,} | {entry.shape.adapter(8):,} |" in told
    assert weight_bytes(known["llama-3-8b-chinese"].shape, "bfloat16") == 16060522496
    four_bit = weight_bytes(known["llama-3-8b-chinese"].shape, "bfloat16", four_bit=True)
    assert 5.6e9 < four_bit < 5.8e9  # as bitsandbytes reports for Llama 3 8B with double quantisation


def test_ways_are_ranked_by_what_fits_then_as_the_paper_did_then_by_speed(options: Finetune) -> None:
    shape = Shape.model_validate(LLAMA)
    names = {size: [way.name for way in plans(shape, options, size * GIB, 1) if way.fits] for size in (8, 12, 24, 80)}
    assert names == {
        8: [],
        12: ["4-bit base, checkpointing"],
        24: ["checkpointing", "4-bit base", "4-bit base, checkpointing"],
        80: ["plain", "checkpointing", "4-bit base", "4-bit base, checkpointing"],
    }
    two = [way.name for way in plans(shape, options, 16 * GIB, 2) if way.fits]
    assert two[0] == "checkpointing, 2 processes that share the base"
    assert "4-bit base, checkpointing, 2 processes" in two
    alone, both = (next(way for way in plans(shape, options, 80 * GIB, 2) if way.processes == count) for count in (1, 2))
    assert both.hours(1e6, 1e14) == pytest.approx(alone.hours(1e6, 1e14) / 2)


def test_a_forecast_says_what_a_run_takes_and_what_would_fit_instead(options: Finetune) -> None:
    shape = Shape.model_validate(LLAMA)
    small = Card("NVIDIA GeForce RTX 3060", 12 * GIB, peak_of("NVIDIA GeForce RTX 3060"))
    text = forecast("llama-3-8b-chinese", shape, options, small, worst(options), records=2000, tokens=1_000_000)
    lines = text.splitlines()
    assert lines[0] == "finetune llama-3-8b-chinese: 2000 records, 3 epochs (checkpointing)"
    assert lines[1].split() == ["steps", "750", "of", "8", "records", "(for", "at", "most", "8", "processes)"]
    assert lines[2].split() == ["tokens", "3000000"]
    assert "estimated" in lines[3]
    assert lines[4].split()[1:] == [
        "3.8",
        "h",
        "estimated,",
        "at",
        "40%",
        "of",
        "the",
        "25",
        "TFLOP/s",
        "of",
        *small.name.split(),
    ]
    assert lines[5:] == [
        "  fits      no: NVIDIA GeForce RTX 3060 has 12.0 GiB",
        "            4-bit base, checkpointing: 8.8 GiB would fit",
    ]
    text = forecast("llama-3-8b-chinese", shape, options, small, worst(options), records=8, tokens=9, processes=4)
    assert "(checkpointing, 4 processes that share the base)" in text
    unknown = Card("Some Card", 80 * GIB, peak_of("Some Card"))
    text = forecast("llama-3-8b-chinese", shape, options, unknown, Load(100, 50, 100), records=1, tokens=100)
    assert "unknown: Some Card" in text
    assert "fits      yes" in text


def test_cards_are_known_by_whole_names() -> None:
    assert peak_of("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA RTX A4000") is None
    assert peak_of("NVIDIA GeForce RTX 4090 Laptop GPU") is None


def driver(folder: Path, *printed: str, status: int = 0) -> Path:
    """A folder with an `nvidia-smi` that prints these lines when it is asked as the real one must be."""
    program = folder / "nvidia-smi"
    lines = "".join(f"echo '{line}'\n" for line in printed)
    asked = "--query-gpu=name,memory.total,compute_cap --format=csv,noheader,nounits"
    version = "test \"$*\" = '--query-gpu=driver_version --format=csv,noheader' && echo 570.86.15 && exit"
    program.write_text(f"#!/bin/sh\n{version}\ntest \"$*\" = '{asked}' || exit 6\n{lines}exit {status}\n", encoding="utf-8")
    program.chmod(0o755)
    return folder


def test_gpus_are_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{driver(tmp_path, 'NVIDIA H100 80GB HBM3, 81559, 9.0', 'Shared, [N/A], 12.1')}:{before}")
    (card,) = gpus()
    assert (card.name, card.memory, card.capability) == ("NVIDIA H100 80GB HBM3", 81559 * 2**20, 9.0)
    driver(tmp_path, "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver", status=9)
    assert gpus() == ()
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpus() == ()


def test_a_driver_that_is_older_than_cuda_needs_is_named() -> None:
    assert outdated("13.0", "570.86.15") == "CUDA 13.0 needs NVIDIA's driver 580 or newer, and this is 570.86.15"
    assert [outdated("13.0", "580.65.06"), outdated("12.8", "570.86.15"), outdated("13.0", None)] == [None, None, None]
    lock = (ROOT / "requirements-cuda.lock").read_text(encoding="utf-8")
    assert "\ncuda-toolkit==13." in lock, "what doctor says of the driver is of another CUDA than the lock's"


@pytest.mark.usefixtures("fresh")
@pytest.mark.slow
def test_the_doctor_says_how_each_model_fits_the_gpu_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = "NVIDIA GeForce RTX 4090, 24564, 8.9"
    monkeypatch.setenv("PATH", f"{driver(tmp_path, card, card)}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    command = [str(PROGRAMS / "mi-llm"), "doctor", "--study", "params.yaml"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert "NVIDIA GeForce RTX 4090, 24.0 GiB + NVIDIA GeForce RTX 4090, 24.0 GiB" in shown
    assert "NVIDIA driver     570.86.15                         paper: 580 or newer, for CUDA 13" in shown
    assert "fine-tuning on 2 x NVIDIA GeForce RTX 4090 (24.0 GiB); all estimated" in shown
    assert f"PyTorch           {torch.__version__}, CUDA {'yes' if torch.cuda.is_available() else 'no'}" in shown
    rows = [line for line in shown.splitlines() if line.startswith("  glm-4-9b ")]
    assert "2 processes" in rows[0]
    assert any("the parameters' setting" in row for row in rows)
    assert "weights of baichuan2-7b (15.1 GB): make http://127.0.0.1:9 reachable, or name a folder that has them" in shown
    assert "not built yet" not in shown


@pytest.mark.usefixtures("fresh")
def test_a_long_run_is_told_in_hours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workspace: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    study = load_study(Path("mini/params.yaml"))
    doctor([study, study.model_copy(update={"expect": study.expect.model_copy(update={"minutes": 2400})})])
    short, long = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  takes"))
    assert f"{study.expect.minutes} min (" in short
    assert "40.0 h (" in long


@pytest.mark.usefixtures("fresh")
def test_what_keeps_the_papers_models_from_a_machine_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workspace: Path
) -> None:
    (workspace / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    paper = load_study(Path("params.yaml"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", f"{driver(tmp_path, 'Tesla V100-SXM2-16GB, 16384, 7.0')}:{os.environ['PATH']}")
    missing = fitting(paper, machine(), needs(paper, machine()))
    assert "Tesla V100-SXM2-16GB has no BF16 arithmetic" in missing
    tuning, *after = (line for line in missing if line.startswith("glm-4-9b"))
    assert tuning.startswith("glm-4-9b does not fit with the finetune settings of params.yaml; 4-bit base, checkpointing: ")
    assert [line.split(",")[0] for line in after] == [f"glm-4-9b does not fit in {stage}" for stage in ("respond", "simulate")]
    assert "finetune.four_bit: true would fit, with 11.3 GiB" in after[0]
    four_bit = paper.model_copy(update={"finetune": paper.finetune.model_copy(update={"four_bit": True})})
    wanted = any("bitsandbytes" in line for line in fitting(four_bit, machine(), []))
    assert wanted is (find_spec("bitsandbytes") is None)
    for model in paper.models:
        (workspace / "mine" / model).mkdir(parents=True)
    monkeypatch.setenv("MI_LLM_MODELS", "mine")
    assert not any("MI_LLM_MODELS" in line and "reachable" in line for line in fitting(paper, machine(), needs(paper, machine())))
    monkeypatch.setenv("PATH", "/nowhere")
    machine.cache_clear()
    assert "no NVIDIA GPU" in fitting(paper, machine(), needs(paper, machine()))


def test_a_model_that_fits_nowhere_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    paper: Study = load_study(Path("params.yaml"))
    (row, *_) = ways_on(Card("GeForce GTX 1050", 2 * GIB, None), paper)
    assert row.startswith("  baichuan2-7b        nothing fits: the smallest is 4-bit base, 43.1 GiB")
    (row, *_) = ways_on(Card("Some Card", 80 * GIB, None), paper)
    assert row.endswith("time unknown")


def test_a_way_is_promised_only_where_the_stages_after_it_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    paper, card = load_study(Path("params.yaml")), Card("Some Card", 24 * GIB, None)
    rows = ways_on(card, paper)
    assert (
        rows[0] == "  baichuan2-7b        nothing fits: the smallest is 4-bit base, 43.1 GiB"
    )  # fine-tuning would take 17.3 GiB
    assert "  baichuan2-7b does not fit in simulate, which needs 30.6 GiB with the settings of params.yaml; " in rows[2]
    settings = re.search(r"; respond\.batch: (\d+) would fit, with 23\.1 GiB$", rows[2])
    assert settings
    shape = hub.entry_of(paper, "baichuan2-7b").shape
    for batch, fits in ((int(settings[1]), True), (int(settings[1]) + 1, False)):
        smaller = paper.model_copy(update={"respond": paper.respond.model_copy(update={"batch": batch})})
        need = after_tuning(smaller, "baichuan2-7b", shape, four_bit=False)["simulate"]
        assert (need.total <= card.memory) is fits


def test_stages_that_another_machine_or_people_do_take_no_memory_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    paper, shape = load_study(Path("params.yaml")), Shape.model_validate(LLAMA)
    people = paper.model_copy(update={"simulate": paper.simulate.model_copy(update={"client": "person"})})
    served = paper.model_copy(update={"respond": paper.respond.model_copy(update={"engine": "server"})})
    liked = paper.model_copy(update={"prefer": paper.prefer.model_copy(update={"models": ("glm-4-9b",)})})
    stages = [[*after_tuning(study, "glm-4-9b", shape, four_bit=False)] for study in (paper, people, served, liked)]
    assert stages == [["respond", "simulate"], ["respond"], [], ["respond", "simulate", "prefer"]]
    halved = [after_tuning(paper, "glm-4-9b", shape, four_bit)["respond"] for four_bit in (False, True)]
    assert halved[0].weights == weight_bytes(shape, "bfloat16")
    assert halved[1].weights == weight_bytes(shape, "bfloat16", four_bit=True)
    assert halved[0].keys_and_values == halved[1].keys_and_values
