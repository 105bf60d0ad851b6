"""A checkpoint from a folder is taken only with the chat format that it was taught."""

import json
from pathlib import Path

import pytest
from tiny import MODELS, study_with

from mi_llm import storage
from mi_llm.engine.load import checkpoint
from mi_llm.engine.template import FORMATS
from mi_llm.models.base import base
from mi_llm.problem import Problem
from mi_llm.study import Study


def with_format(model: str, name: str) -> Study:
    study = study_with()
    formats = study.base.formats | {model: name}
    return study.model_copy(update={"base": study.base.model_copy(update={"formats": formats})})


@pytest.mark.usefixtures("checkpoints")
def test_another_chat_format_than_the_checkpoints_is_refused_and_the_one_before_stays() -> None:
    """The tiny models share one tokenizer, which knows the tokens of all formats."""
    right = study_with()
    for model in MODELS:
        base(right, model)
        for name in FORMATS.keys() - {right.base.formats[model]}:
            with pytest.raises(Problem, match=rf"(?s)pretrain/models/{model}/generation_config.json.*{name}.*base.formats"):
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
