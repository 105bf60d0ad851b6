"""Further seeds: each is what the study would be with that seed as its own, and the stage goes on from where it was stopped."""

import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from forked import ended, together
from tiny import study_with

from mi_llm import storage
from mi_llm.dialog import Dialog, write_dialogs, write_rounds
from mi_llm.models.base import base
from mi_llm.models.finetune import finetune
from mi_llm.models.respond import respond
from mi_llm.problem import Problem
from mi_llm.score.score import score
from mi_llm.seeds import seeds as stage
from mi_llm.study import Study

MODEL = "tiny-llama3"


@pytest.fixture
def ready(workspace: Path, checkpoints: Path, sample_dialogs: list[Dialog]) -> Study:
    """A small study whose stages before fine-tuning are done: 6 dialogs to train on, 5 to answer."""
    study = study_with(
        finetune_epochs="1", save_every="1", threads="1", max_new_tokens="6", score_resamples="100", seeds_models=f"[{MODEL}]",
        seeds_further="[7, 8]",
    )  # fmt: skip
    base(study, MODEL)
    split = study.folder / "split"
    write_dialogs(split / "train.jsonl", sample_dialogs[:6])
    write_rounds(split / "test_rounds.jsonl", [next(dialog.rounds()) for dialog in sample_dialogs[6:11]])
    return study


def of(study: Study, seed: int) -> Path:
    return study.folder / "seeds" / f"{MODEL}-{seed}"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("decoding", ["greedy", "sample"])
def test_a_further_seed_is_the_study_with_that_seed(ready: Study, decoding: str) -> None:
    drawing = ready.model_copy(update={"respond": ready.respond.model_copy(update={"decoding": decoding})})
    stage.seeds(drawing, MODEL, 7)
    alone = drawing.model_copy(update={"seed": 7, "models": {MODEL: ready.models[MODEL]}})
    finetune(alone, MODEL)
    respond(alone, MODEL)
    score(alone)
    adapter = "adapter/adapter_model.safetensors"
    assert (of(ready, 7) / adapter).read_bytes() == alone.path("finetune", MODEL, adapter).read_bytes()
    sampled = ["base", "tuned"] if decoding == "sample" else ["tuned"]  # no seed changes what a base says greedily
    assert [path.stem for path in sorted(of(ready, 7).glob("*.jsonl"))] == sampled
    for arm in sampled:
        assert (of(ready, 7) / f"{arm}.jsonl").read_bytes() == alone.path("respond", MODEL, f"{arm}.jsonl").read_bytes()
    samples, theirs = pd.read_csv(of(ready, 7) / "samples.csv"), pd.read_csv(alone.path("score", "samples.csv"))
    pd.testing.assert_frame_equal(samples, theirs[theirs["arm"].isin(sampled)].reset_index(drop=True))
    numbers = storage.read_json(of(ready, 7) / "metrics.json")
    assert numbers["tuned_bleu_4"] == storage.read_json(alone.path("score", "metrics.json"))[MODEL]["tuned"]["bleu_4"]


def test_two_seeds_are_two_adapters_and_a_stopped_run_goes_on(ready: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in ready.seeds.further:
        stage.seeds(ready, MODEL, seed)
    first, second = (files_of(of(ready, seed)) for seed in ready.seeds.further)
    assert first["adapter/adapter_model.safetensors"] != second["adapter/adapter_model.safetensors"]
    shutil.rmtree(of(ready, 7))  # as DVC does before it runs a stage again
    with monkeypatch.context() as stopped:
        stopped.setattr(stage, "answer_locally", stop)
        with pytest.raises(KeyboardInterrupt):
            stage.seeds(ready, MODEL, 7)
    shutil.rmtree(of(ready, 7))
    speed = ready.folder / ".speed" / f"seeds-{MODEL}-7.jsonl"
    trained = speed.read_text(encoding="utf-8")
    stage.seeds(ready, MODEL, 7)
    assert speed.read_text(encoding="utf-8") == trained  # no step was made again
    assert files_of(of(ready, 7)) == first
    assert list((ready.folder / "seeds").glob(".*")) == []


@pytest.mark.slow
def test_two_processes_share_the_work(ready: Study) -> None:
    stage.seeds(ready, MODEL, 7)
    alone = storage.read_json(of(ready, 7) / "metrics.json")
    shutil.rmtree(of(ready, 7))
    assert ended(together(partial(stage.seeds, ready, MODEL, 7), 2)) == [0, 0]
    assert storage.read_json(of(ready, 7) / "metrics.json") == pytest.approx(alone, abs=1e-3)
    assert len(list(storage.read_lines(of(ready, 7) / "tuned.jsonl"))) == 5
    assert list((ready.folder / "seeds").glob(".*")) == []


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "seed", "words"),
    [
        ({}, 42, "the study's own seed"),
        ({"untuned": f"[{MODEL}]", "seeds_models": "[]"}, 7, f"{MODEL} is not tuned"),
        ({"respond_engine": "server"}, 7, "local, for the stage seeds"),
    ],
)
def test_what_no_further_seed_can_be(workspace: Path, changes: dict[str, str], seed: int, words: str) -> None:
    with pytest.raises(Problem, match=words):
        stage.seeds(study_with(**changes), MODEL, seed)
