"""A base in 4 bits: every stage loads it so, or says in the same words what is missing; nothing is merged into it."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from repository import ROOT
from tiny import give_adapter, study_with

from mi_llm import storage
from mi_llm.apps.model.server import opened
from mi_llm.dialog import Dialog, read_dialogs, write_dialogs, write_rounds
from mi_llm.engine.load import load_base
from mi_llm.miti.simulate import simulate
from mi_llm.models.finetune import finetune
from mi_llm.models.respond import respond
from mi_llm.problem import Problem
from mi_llm.study import Study

MODEL = "tiny-glm4"
HERE = find_spec("bitsandbytes") is not None


def serve(study: Study, model: str) -> None:
    """Load a model as the model server does, and end its thread."""
    opened(study, model, 1, lambda told: None).engine.close()


STAGES: list[Callable[[Study, str], None]] = [finetune, respond, simulate, serve]


@pytest.fixture
def ready(workspace: Path, sample_dialogs: list[Dialog]) -> Study:
    """A study with a base in 4 bits: an adapter, dialogs to train on, a round to answer, a client."""
    (workspace / "pretrain").symlink_to(ROOT / "pretrain")
    few = {"max_samples": "4", "finetune_epochs": "1", "max_new_tokens": "4", "simulate_dialogs": "1", "simulate_rounds": "1"}
    study = study_with(threads="1", four_bit="true", **few)
    give_adapter(study, MODEL)
    write_dialogs(study.folder / "split" / "train.jsonl", sample_dialogs[:4])
    write_rounds(study.folder / "split" / "test_rounds.jsonl", list(sample_dialogs[0].rounds())[:1])
    return study


@pytest.mark.skipif(HERE, reason="here a base can be in 4 bits")
def test_without_bitsandbytes_every_stage_says_the_same(ready: Study) -> None:
    problem_texts = set()
    for run in STAGES:
        with pytest.raises(Problem) as caught:
            run(ready, MODEL)
        problem_texts.add(str(caught.value))
    assert len(problem_texts) == 1
    assert problem_texts.pop().startswith("finetune.four_bit: true\n  expected: the package bitsandbytes\n")


@pytest.mark.skipif(not HERE, reason="bitsandbytes, which is not in the lock, is not installed")
def test_every_stage_runs_with_a_base_in_4_bits(ready: Study) -> None:
    loaded, _ = load_base(ready, MODEL, "float32")
    kinds = {type(module).__name__ for name, module in loaded.named_modules() if name.endswith("_proj")}
    assert kinds == {"Linear4bit"}
    for run in STAGES:
        run(ready, MODEL)
    (tuned,) = storage.read_lines(ready.folder / "respond" / MODEL / "tuned.jsonl")
    assert tuned["tokens"] > 0
    assert len(read_dialogs(ready.folder / "simulate" / MODEL / "tuned.jsonl")) == 1


def test_an_adapter_is_not_merged_into_4_bits(workspace: Path) -> None:
    with pytest.raises(Problem, match=r"respond\.adapter is merged, but no adapter can be merged into the 4-bit base"):
        study_with(four_bit="true", adapter="merged")
    with pytest.raises(Problem, match=r"prefer\.models names a model, but no adapter can be merged into the 4-bit base"):
        study_with(adapter="active", prefer_models="[tiny-llama3]")
