"""A checkpoint from a folder is taken only with the chat format that it was taught."""

import json
from pathlib import Path

import pytest
import torch
from families import FAMILIES, make
from tiny import MODELS, study_of, study_with
from transformers import AutoModelForCausalLM

from mi_llm import storage
from mi_llm.dialog import Dialog
from mi_llm.engine.load import chat_format, checkpoint, load, load_tokenizer
from mi_llm.engine.template import FORMATS
from mi_llm.models.base import base
from mi_llm.problem import Problem
from mi_llm.study import Study


def with_format(model: str, name: str) -> Study:
    study = study_with()
    return study.model_copy(update={"models": {model: study.models[model].model_copy(update={"chat_format": name})}})


@pytest.mark.usefixtures("checkpoints")
def test_another_chat_format_than_the_checkpoints_is_refused_and_the_one_before_stays() -> None:
    """The tiny models share one tokenizer, which knows the tokens of all formats."""
    right = study_with()
    for model in MODELS:
        base(right, model)
        for name in FORMATS.keys() - {right.models[model].chat_format}:
            with pytest.raises(Problem, match=rf"(?s)pretrain/models/{model}/generation_config.json.*{name}.*chat_format"):
                base(with_format(model, name), model)
            assert (checkpoint(right, model) / "model.safetensors").is_file()


def test_a_tokenizer_without_the_formats_tokens_is_refused(checkpoints: Path) -> None:
    path = checkpoints / "tiny-glm4" / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<|eot_id|>", "<|end|>"), encoding="utf-8")
    with pytest.raises(Problem, match=r"tiny-glm4: tokenizer: no token <\|eot_id\|>"):
        base(with_format("tiny-glm4", "llama3"), "tiny-glm4")


def test_a_checkpoint_that_names_no_stop_tokens_gets_the_formats(checkpoints: Path) -> None:
    path = checkpoints / "tiny-glm4" / "generation_config.json"
    stops = storage.read_json(path)["eos_token_id"]
    path.write_text(json.dumps({"top_p": 0.9}), encoding="utf-8")
    study = study_with()
    base(study, "tiny-glm4")
    named = storage.read_json(checkpoint(study, "tiny-glm4") / "generation_config.json")
    assert named == {"top_p": 0.9, "eos_token_id": stops}


def test_a_model_without_a_format_is_asked_in_its_own_and_its_files_say_so(workspace: Path, sample_dialogs: list[Dialog]) -> None:
    """Thinking is off, and the end that training teaches is a stop, for whatever program loads the checkpoint."""
    make(workspace / "mine/qwen3", "qwen3", sample_dialogs)
    (workspace / "mine/qwen3/generation_config.json").write_text('{"eos_token_id": 0, "top_k": 20}', encoding="utf-8")
    study = study_of("qwen3")
    base(study, "qwen3")
    folder = checkpoint(study, "qwen3")
    tokenizer, form = load_tokenizer(folder), chat_format(study, "qwen3")
    assert tokenizer.get_chat_template() == form.template != FAMILIES["qwen3"].template
    stops = storage.read_json(folder / "generation_config.json")
    assert stops == {"eos_token_id": tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]), "top_k": 20}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_whose_marks_the_tokenizer_does_not_know_is_refused(
    name: str, workspace: Path, sample_dialogs: list[Dialog]
) -> None:
    """Also where the stop tokens happen to be known: the marks would be read as letters."""
    folder = make(workspace / "mine/qwen2", "qwen2", sample_dialogs)
    study = study_of("qwen2", name)
    with pytest.raises(Problem, match=rf"qwen2: tokenizer: no token(?s:.*){name}(?s:.*)chat_format"):
        base(study, "qwen2")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens([*FORMATS[name].stops], special_tokens=True)
    tokenizer.save_pretrained(folder)
    with pytest.raises(Problem, match=rf"no token(?s:.*)the marks of chat format {name}"):
        base(study, "qwen2")


def test_a_checkpoint_may_be_in_shards_and_is_checked_without_being_loaded(workspace: Path, sample_dialogs: list[Dialog]) -> None:
    source = make(workspace / "mine/llama", "llama", sample_dialogs, shard="50KB")
    study = study_of("llama")
    base(study, "llama")
    folder = checkpoint(study, "llama")
    shards = [path.name for path in source.glob("*.safetensors")]
    assert len(shards) > 3
    assert {path.name for path in folder.iterdir()} == {path.name for path in source.iterdir()}
    plain = AutoModelForCausalLM.from_pretrained(source)
    counted = storage.read_json(study.path("base", "llama", "metrics.json"))["parameters"]
    assert counted == sum(weight.numel() for weight in plain.parameters())
    loaded, _ = load(folder, "float32")
    for name, weight in plain.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    index = source / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shards[0], f"../{shards[0]}"))
    with pytest.raises(Problem, match=rf"index.json: names '../{shards[0]}'"):
        base(study, "llama")
    index.write_text(index.read_text().replace(f"../{shards[0]}", shards[0]))
    (source / shards[1]).unlink()
    with pytest.raises(Problem, match=f"no {shards[1]}"):
        base(study, "llama")
