"""Every family's tiny random model: losses and answers of plain transformers, and what our attention does not know falls back."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, make
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, GenerationConfig, PreTrainedModel

from mi_llm.dialog import Dialog
from mi_llm.engine.attention import beyond
from mi_llm.engine.branching import Branching, branching_attention, greedy, plan
from mi_llm.engine.estimate import shape_of
from mi_llm.engine.load import load, load_tokenizer
from mi_llm.engine.own_format import own_format
from mi_llm.engine.packing import loss_sum, pack, pad
from mi_llm.engine.template import Encoded, encode, messages, prompt
from mi_llm.models.finetune import adapt, laid_out, make_ready
from mi_llm.study import Study

MOST = 10
PECULIAR: dict[str, tuple[dict[str, Any], str]] = {
    "mistral": ({"sliding_window": 16}, "a sliding window of 16 tokens"),
    "qwen2": ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "layers with sliding attention"),
    "gemma": ({"model_type": "gemma2", "sliding_window": 16}, "layers with sliding attention, soft caps on its scores"),
    "llama": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic rotary positions"),
}
families = pytest.mark.parametrize("name", FAMILIES)
peculiar = pytest.mark.parametrize("name", PECULIAR)


def chats_of(name: str, dialogs: Sequence[Dialog]) -> list[list[dict[str, str]]]:
    return [messages(dialog.turns[:6], "指示", FAMILIES[name].placement) for dialog in dialogs[:3]]


def prompts_of(name: str, folder: Path, dialogs: Sequence[Dialog]) -> list[list[int]]:
    tokenizer = load_tokenizer(folder)
    form = own_format(folder, tokenizer)
    asked = [[prompt(tokenizer, form, chat[:number]) for number in (-5, -3, -1)] for chat in chats_of(name, dialogs[:2])]
    return [ids for dialog in asked for ids in dialog]


def changing(study: Study, folder: Path) -> PeftModel:
    """The checkpoint with an adapter that changes what it says."""
    adapted = adapt(load(folder, "float32")[0], study.finetune, seed=1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    return adapted.eval()


def generated(model: PeftModel, asked: Sequence[list[int]]) -> list[list[int]]:
    """What transformers' own `generate` says to each prompt alone."""
    settings = GenerationConfig(do_sample=False, max_new_tokens=MOST, eos_token_id=[5], pad_token_id=0)
    outs = []
    for ids in asked:
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        outs.append(model.generate(**inputs, generation_config=settings)[0, len(ids) :].tolist())
    return [[token for token in out if token != 5] for out in outs]


def answered(model: PeftModel, asked: Sequence[list[int]]) -> list[list[int]]:
    """What we say to them, the rounds of each dialog together."""
    branching_attention(model.get_base_model())
    dialogs = [plan(range(start, start + 3), asked[start : start + 3]) for start in (0, 3)]
    replies = {index: ids for index, ids, _ in Branching(model, [5], 4, MOST, greedy).answers(dialogs)}
    return [replies[index] for index in range(len(asked))]


def plain_loss(model: PeftModel, records: Sequence[Encoded]) -> tuple[float, dict[str, torch.Tensor]]:
    """The summed loss of records one by one, by plain transformers and peft, and the adapter's gradients."""
    total = torch.zeros(())
    for record in records:
        logits = model(input_ids=torch.tensor([record.ids]), use_cache=False).logits[0, :-1].float()
        total = total + cross_entropy(logits, torch.tensor(record.labels[1:]), reduction="sum")
    total.backward()
    return total.item(), gradients_of(model)


def gradients_of(model: PeftModel) -> dict[str, torch.Tensor]:
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return gradients


def our_loss(model: PeftModel, records: Sequence[Encoded], study: Study) -> tuple[float, dict[str, torch.Tensor]]:
    """The same as training computes it."""
    options = laid_out(model.get_base_model(), study.finetune)
    make_ready(model, options)
    device = torch.device("cpu")
    loss = loss_sum(model, pack(records, device) if options.packed else pad(records, 0, device))
    loss.backward()
    return loss.item(), gradients_of(model)


def records_of(name: str, folder: Path, dialogs: Sequence[Dialog], study: Study) -> list[Encoded]:
    tokenizer = load_tokenizer(folder)
    form = own_format(folder, tokenizer)
    return encode(tokenizer, form, chats_of(name, dialogs), 1000, last_only=form.records(study.finetune).loss == "last")


def alike(study: Study, name: str, folder: Path, dialogs: Sequence[Dialog]) -> None:
    model, records = changing(study, folder), records_of(name, folder, dialogs, study)
    model.train()
    (plain, plain_gradients), (ours, our_gradients) = (
        plain_loss(model, records),
        our_loss(copy.deepcopy(model), records, study),
    )
    assert ours == pytest.approx(plain, rel=1e-5)
    assert our_gradients.keys() == plain_gradients.keys()
    for weight, gradient in plain_gradients.items():
        torch.testing.assert_close(our_gradients[weight], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())
    asked = prompts_of(name, folder, dialogs)
    replies = answered(model.eval(), asked)
    assert replies == generated(changing(study, folder), asked)
    assert len({tuple(ids) for ids in replies}) > 1


@families
def test_losses_and_answers_are_those_of_plain_transformers(
    name: str, study: Study, tmp_path: Path, sample_dialogs: list[Dialog], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(tmp_path / name, name, sample_dialogs)
    alike(study, name, folder, sample_dialogs)
    printed = capsys.readouterr().err
    assert ("gradients of GemmaRMSNorm are left to autograd" in printed) == (name == "gemma")
    assert "its attention has" not in printed


@peculiar
def test_what_our_attention_does_not_know_falls_back_and_says_so(
    name: str, study: Study, tmp_path: Path, sample_dialogs: list[Dialog], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, why = PECULIAR[name]
    folder = make(tmp_path / name, name, sample_dialogs, **settings)
    alike(study, name, folder, sample_dialogs)
    printed = capsys.readouterr().err
    assert f"its attention has {why}; records are padded" in printed
    assert f"its attention has {why}; each reply is written alone" in printed


@families
def test_the_parameters_are_counted_from_the_configuration(name: str, tmp_path: Path, sample_dialogs: list[Dialog]) -> None:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(make(tmp_path / name, name, sample_dialogs))
    assert shape_of(model.config).parameters == sum(weight.numel() for weight in model.parameters())


def test_a_window_that_no_text_can_exceed_is_none(tmp_path: Path, sample_dialogs: list[Dialog]) -> None:
    folder = make(tmp_path / "mistral", "mistral", sample_dialogs, sliding_window=4096)
    assert beyond(load(folder, "float32")[0]) == ""
    assert beyond(Gemma3ForCausalLM(Gemma3ForCausalLM.config_class(**TINY))) == "layers with sliding attention"


TINY = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
