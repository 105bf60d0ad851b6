"""Base models as every stage loads them: without remote code and network, deterministic, quantized if the study says so.

Reads `base/<model>/checkpoint/`, which the stage `base` writes. Loads onto this process's GPU where there is one.
"""

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

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

from mi_llm.engine.own_format import own_format
from mi_llm.engine.template import FORMATS, ChatFormat
from mi_llm.problem import Problem
from mi_llm.registry import CHECKPOINT
from mi_llm.study import Study

PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def checkpoint(study: Study, model: str) -> Path:
    """Where the base model's checkpoint lies."""
    return study.path("base", model, "checkpoint")


def chat_format(study: Study, model: str, folder: Path | None = None) -> ChatFormat:
    """The chat format that the study names for a model, or else its own, as the checkpoint in `folder` or in its place has it."""
    name = study.models[model].chat_format
    if name != CHECKPOINT:
        return FORMATS[name]
    folder = folder or checkpoint(study, model)
    return own_format(folder, load_tokenizer(folder))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer, without remote code and network."""
    with whole(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def load(
    folder: Path, precision: str, *, in_main_memory: bool = False, quantization: BitsAndBytesConfig | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint with native classes, without remote code and network.

    It goes onto this process's GPU where there is one, unless it is wanted in main memory; quantized if asked for.
    """
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # meant for its own callers
    tokenizer = load_tokenizer(folder)
    on_gpu = torch.cuda.is_available() and not in_main_memory
    details = f"the weights in {precision} do not fit {'the GPU' if on_gpu else 'this machine'}"
    remedy = "end other programs that use this memory, or serve fewer models at once; `mi-llm doctor` says what fits"
    with whole(folder), enough_memory(str(folder), "the weights", remedy, lambda: details):
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=PRECISION[precision],
            trust_remote_code=False,
            local_files_only=True,
            device_map={"": f"cuda:{os.environ.get('LOCAL_RANK', '0')}"} if on_gpu else None,
            quantization_config=quantization,
        )
        if missing := sorted(loaded["missing_keys"]):  # transformers would go on with numbers at random
            raise ValueError(f"no weight {missing[0]}")
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


@contextmanager
def whole(folder: Path) -> Iterator[None]:
    """Where the files of a checkpoint or adapter cannot be loaded in this block, raise a Problem that says why."""
    warnings.filterwarnings("error", "Found missing adapter keys")  # peft would go on without them
    try:
        yield
    except Problem:
        raise
    except Exception as error:  # transformers, tokenizers and peft raise many kinds for damaged files
        found = f"cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        remedy = "remove that folder, then bring it back with `dvc checkout`, or run the study again"
        raise Problem(str(folder), found, "whole files of a model", remedy) from error


@contextmanager
def enough_memory(where: str, memory_for: str, remedy: str, details: Callable[[], str] = str) -> Iterator[None]:
    """Where PyTorch has no memory in this block, a GPU's or the machine's, raise a Problem, with the `details` of that moment."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # For the machine's memory PyTorch has no error of its own.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        found = ": ".join(filter(None, ("out of memory", details())))
        raise Problem(where, found, f"memory for {memory_for}", remedy) from error


def prepare_torch(study: Study) -> None:
    """Fixed thread count and deterministic algorithms: the same run on a CPU gives the same bytes.

    On a GPU, too: the strict form, since `warn_only` has attention go back in a way that is not deterministic. An operation
    without a deterministic form is an error unless it is named: see `nondeterministic`.
    Fresh memory is not filled with NaN first, as torch would: nothing here reads what it has not written, and that took nearly
    half of the time of training. On a GPU cuDNN's attention, which is not deterministic backward, is not chosen.
    """
    torch.set_num_threads(study.threads)
    make_first_calls()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what makes cuBLAS deterministic; read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cuda.enable_cudnn_sdp(False)


def make_first_calls() -> None:
    """Have MKL choose its kernels for the functions that models use, on one element, and so in one thread.

    It chooses at a function's first call. Where two threads make that call, one of them may get a kernel of low accuracy, so that
    a process's first step has other digits than all later ones (PyTorch issue 188792).
    """
    for function in (torch.cos, torch.sin, torch.exp, torch.log, torch.sqrt, torch.tanh, torch.erf):
        function(torch.ones(1))


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
