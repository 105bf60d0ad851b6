"""Stage `base@model`: put one base model's checkpoint in place.

Reads the shipped tiny checkpoint `<weights>/<model>/`, or for models of the hub the pins in the file `<weights>` and the
model's files (see `hub.py`). Writes `base/<model>/checkpoint/` with a config, weights and tokenizer that plain transformers
classes load, without remote code, and `metrics.json`; for a model of the hub also its license, and in `source.json` where each
file came from. `generation_config.json` names the stop tokens of the study's chat format, whatever the model came with.
"""

import json
import math
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from mi_llm import storage
from mi_llm.models import estimate, hub
from mi_llm.models.template import FORMATS, ChatFormat
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Study

CHECKPOINT = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INDEX = "model.safetensors.index.json"
WEIGHT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
AGAIN = "run the stage again; if the files came from your own folder, copy them again"


def checkpoint(study: Study, model: str) -> Path:
    """Where the base model's checkpoint lies."""
    return study.folder / "base" / model / "checkpoint"


def chat_format(study: Study, model: str) -> ChatFormat:
    """The chat format that the study names for a model."""
    return FORMATS[study.base.formats[model]]


def load(
    folder: Path, precision: str, *, in_main_memory: bool = False, quantization: BitsAndBytesConfig | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint with native classes, without remote code and network.

    It goes onto this process's GPU where there is one, unless it is wanted in main memory; quantized if asked for.
    """
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # meant for its own callers
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    on_gpu = torch.cuda.is_available() and not in_main_memory
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=PRECISION[precision],
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",
            device_map={"": f"cuda:{os.environ.get('LOCAL_RANK', '0')}"} if on_gpu else None,
            quantization_config=quantization,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Problem(
            str(folder),
            f"out of memory: the weights in {precision} do not fit {'the GPU' if on_gpu else 'this machine'}",
            "enough memory for them",
            "end other programs that use this memory, or serve fewer models at once; `mi-llm doctor` says what fits",
        ) from error
    return model, tokenizer


def load_base(
    study: Study, model: str, precision: str, *, in_main_memory: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a study's base model, as every stage does: in 4 bits if `finetune.four_bit` says so, so that an adapter meets the
    base that it was trained on.
    """
    quantization = four_bit(precision) if study.finetune.four_bit else None
    return load(checkpoint(study, model), precision, in_main_memory=in_main_memory, quantization=quantization)


def four_bit(precision: str) -> BitsAndBytesConfig:
    """NF4 with double quantization, as in QLoRA (Dettmers et al. 2023) and LLaMA-Factory; computes in `precision`."""
    if find_spec("bitsandbytes") is None:  # setup.sh and the container have it with a CUDA build of PyTorch only
        remedy = "pip install -c requirements-cuda.lock bitsandbytes, into this environment"
        raise Problem("finetune.four_bit", "true", "the package bitsandbytes", remedy)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=PRECISION[precision],
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch had no memory, of a GPU or of the machine: for the latter it has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def prepare_torch(study: Study) -> None:
    """Fixed thread count and deterministic algorithms: the same run on a CPU gives the same bytes.

    On a GPU, too: the strict form, since `warn_only` has attention go back in a way that is not deterministic. An operation
    without a deterministic form is an error unless it is named: see `nondeterministic`.
    Fresh memory is not filled with NaN first, as torch would: nothing here reads what it has not written, and that took nearly
    half of the time of training. On a GPU cuDNN's attention, which is not deterministic backward, is not chosen.
    """
    torch.set_num_threads(study.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what makes cuBLAS deterministic; read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cuda.enable_cudnn_sdp(False)


lifted = threading.Lock()  # the mode is the whole process's; the model server's threads must not end each other's exception
named = set[str]()


@contextmanager
def nondeterministic(operation: str) -> Iterator[None]:
    """Allow one operation that has no deterministic form on this device, in this block only; the log names it once."""
    if operation not in named:
        named.add(operation)
        print(f"{operation}: PyTorch has no deterministic form of it on this device; it is allowed", file=sys.stderr)
    with lifted, warnings.catch_warnings(action="ignore", category=UserWarning):
        before = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode("warn")
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)


def base(study: Study, model: str) -> None:
    """Put the checkpoint in place; see the module."""
    if study.base.source == "hub":
        from_hub(study, model)
    else:
        from_folder(study, model)


def from_folder(study: Study, model: str) -> None:
    """Copy a shipped checkpoint."""
    source = Path(study.weights) / model
    with stage(study, "base", model, [source]) as out:
        if missing := [name for name in CHECKPOINT if not (source / name).is_file()]:
            raise Problem(
                str(source), f"no {', no '.join(missing)}", f"a checkpoint: {', '.join(CHECKPOINT)}", "add what is missing"
            )
        target = checkpoint(study, model)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in CHECKPOINT:
            with storage.replacing(target / name) as file:
                file.write((source / name).read_bytes())
        check_tokenizer(target, chat_format(study, model))
        name_stops(target, chat_format(study, model))
        loaded, tokenizer = load(target, "float32")
        numbers = {"parameters": sum(weight.numel() for weight in loaded.parameters()), "vocabulary": len(tokenizer)}
        storage.write_json(out / "metrics.json", numbers)


def from_hub(study: Study, model: str) -> None:
    """Obtain a pinned model, convert it if its layout needs it, check what came out, and only then forget the download."""
    from mi_llm.models.convert import convert, convertible  # no other stage that loads a model needs what it imports

    with stage(study, "base", model, [Path(study.weights)]) as out:
        entry = hub.entry_of(study, model)
        hub.check_room(study, model, entry)
        hub.accept_licence(study, model, entry)

        def check_native(folder: Path) -> None:
            if not convertible(folder):
                check_config(folder, entry)

        obtained = hub.obtain(study, model, entry, check_native)
        target = checkpoint(study, model)
        shutil.rmtree(target, ignore_errors=True)
        record: dict[str, Any] = {
            "repository": entry.repository,
            "revision": entry.revision,
            "citation": entry.citation,
            "sha256": obtained.sha256,
        }
        if obtained.unverified:
            record["unverified"] = list(obtained.unverified)
        if convertible(obtained.folder):
            convert(obtained.folder, target)
        else:
            target.mkdir()
            for name in obtained.sha256:
                put(obtained.folder / name, target / name)
        check_config(target, entry)
        put(obtained.folder / entry.licence.file, out / "LICENCE" / entry.licence.file)
        parameters = check_weights(target)
        if parameters != entry.parameters:
            raise Problem(str(target), f"{parameters} parameters", f"{entry.parameters} for {model}", AGAIN)
        vocabulary = check_tokenizer(target, chat_format(study, model))
        if name_stops(target, chat_format(study, model)):
            record["changed"] = ["generation_config.json"]
        numbers = {
            "parameters": parameters,
            "vocabulary": vocabulary,
            "revision": entry.revision,
            "licence": entry.licence.name,
        }
        storage.write_json(out / "source.json", record)
        storage.write_json(out / "metrics.json", numbers)
    hub.discard(study, model)


def put(source: Path, target: Path) -> None:
    """Give a file a second name; where file systems do not allow that, copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        with storage.replacing(target) as copy, source.open("rb") as file:
            shutil.copyfileobj(file, copy, 1 << 22)


def header(path: Path) -> dict[str, list[int]]:
    """The shapes of the weights in a safetensors file, by name, after checking that the file holds all their bytes.

    The format: eight bytes with the header's length, a JSON header with type, shape and place of each weight, the weights.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            described = json.loads(file.read(length)) if length < path.stat().st_size else {}
    except (OSError, ValueError):
        described = {}
    described.pop("__metadata__", None)
    if not described:
        raise Problem(str(path), "no safetensors header", "a safetensors file", AGAIN)
    for name, weight in described.items():
        begin, end = weight["data_offsets"]
        if end - begin != math.prod(weight["shape"]) * WEIGHT_BYTES[weight["dtype"]]:
            raise Problem(f"{path}: {name}", f"{end - begin} bytes for {weight['shape']} of {weight['dtype']}", "its size", AGAIN)
    whole = 8 + length + max(weight["data_offsets"][1] for weight in described.values())
    if path.stat().st_size != whole:
        raise Problem(str(path), f"{path.stat().st_size} bytes", f"{whole}, as its header says", AGAIN)
    return {name: weight["shape"] for name, weight in described.items()}


def config_of(folder: Path) -> PreTrainedConfig:
    """A checkpoint's configuration as transformers loads it, with defaults for what config.json omits."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError) as error:
        raise Problem(
            str(folder / "config.json"),
            " ".join(str(error).split())[:200],
            "an architecture of transformers' own classes",
            "use a model of such an architecture, or convert it first",
        ) from error
    return config


def check_config(folder: Path, entry: hub.Entry) -> None:
    """Compare a checkpoint's configuration with what its original says (hub.yaml); no weight shows a wrong rotary base."""
    config, original = config_of(folder), entry.original
    rope = config.rope_parameters
    found = {
        "rope_type": rope["rope_type"],
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
        "rms_norm_eps": config.rms_norm_eps,
        **estimate.shape_of(config).model_dump(),
    }
    stated = {"rope_type": "default", **original.model_dump(include=set(found)), **entry.shape.model_dump()}
    differing = [name for name, value in stated.items() if found[name] != value]
    if not differing:
        return
    remedy = f"correct the entry in hub.yaml if {original.repository} says otherwise; else fetch the files again"
    if original.repository != entry.repository:
        remedy = (
            f"use the original repository, {original.repository}, whose layout this stage converts: put its name, its commit and "
            "the SHA-256 of its weight files into hub.yaml, from its pages; the bundle's authors could not see them"
        )
    raise Problem(
        str(folder / "config.json"),
        ", ".join(f"{name} {found[name]}" for name in differing),
        ", ".join(f"{name} {stated[name]}" for name in differing) + f", as {original.repository} has it",
        remedy,
    )


def check_weights(folder: Path) -> int:
    """Check that a checkpoint holds every weight its architecture has, whole, without loading one; returns their number.

    The architecture is built from `config.json` on PyTorch's meta device, which has shapes and no memory.
    """
    index = folder / INDEX
    places = storage.read_json(index)["weight_map"] if index.exists() else {}
    files = sorted(set(places.values())) or ["model.safetensors"]
    found: dict[str, list[int]] = {}
    for name in files:
        found.update(header(folder / name))
    with torch.device("meta"):
        wanted = AutoModelForCausalLM.from_config(config_of(folder), trust_remote_code=False)
    for name, weight in wanted.named_parameters():
        if found.get(name) != list(weight.shape):
            raise Problem(f"{folder}: {name}", f"{found.get(name, 'missing')}", f"a weight of {list(weight.shape)}", AGAIN)
    return sum(weight.numel() for weight in wanted.parameters())


def check_tokenizer(folder: Path, form: ChatFormat) -> int:
    """Load a checkpoint's tokenizer and check that it knows the tokens that end a reply; returns the number of its tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    known = tokenizer.get_vocab()
    for token in form.stops:
        if token not in known:
            raise Problem(f"{folder}: tokenizer", f"no token {token}", f"the stop tokens of chat format {form.name}", AGAIN)
    return len(tokenizer)


def name_stops(folder: Path, form: ChatFormat) -> bool:
    """Let a checkpoint's `generation_config.json` name the tokens that end a reply here; returns whether it had to change.

    vLLM and transformers' `generate` end a reply at the tokens named there; a model may have come with fewer.
    """
    path = folder / "generation_config.json"
    settings = storage.read_json(path) if path.exists() else {}
    named = settings.get("eos_token_id")
    stops = form.stop_ids(AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    if {*stops} == {*(named if isinstance(named, list) else [named])}:
        return False
    storage.write_json(path, settings | {"eos_token_id": stops})
    return True
