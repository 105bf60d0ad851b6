"""The gradients that are written out, against those of autograd through the libraries' own forward passes."""

from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mi_llm.engine.gradients import cross_entropy, write_out


def both(plain: nn.Module, x: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
    """Output, and gradients of the input and of whatever is trained, before and after `write_out`."""
    written, results = deepcopy(plain), []
    write_out(written)
    for module in (plain, written):
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):  # as in training
            out = module(inputs)
        (out.float() * torch.arange(out.numel()).view_as(out).sin()).sum().backward()
        results.append((out, [weight.grad for weight in (inputs, *module.parameters()) if weight.grad is not None]))
    return results


def alike(results: list[tuple[Tensor, list[Tensor]]], within: float, count: int) -> None:
    (plain, plain_grads), (written, written_grads) = results
    assert written.dtype == plain.dtype
    assert len(written_grads) == len(plain_grads) == count
    for plain_value, written_value in zip([plain, *plain_grads], [written, *written_grads], strict=True):
        assert plain_value.dtype == written_value.dtype
        assert 0 < plain_value.abs().max() < torch.inf
        assert (plain_value - written_value).abs().max() <= within * plain_value.abs().max()


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("bias", [True, False])
def test_lora(dtype: torch.dtype, within: float, bias: bool) -> None:
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(12, 20, bias=bias)).to(dtype)
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=["0"]))
    with torch.no_grad():
        model.base_model.model[0].lora_B["default"].weight.normal_()
    alike(both(model, torch.randn(2, 7, 12, dtype=dtype)), within, count=3)


def test_lora_with_dropout_is_left_to_peft() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(12, 20)), LoraConfig(r=3, lora_dropout=0.5, target_modules=["0"]))
    write_out(model)
    assert "forward" not in vars(model.base_model.model[0])


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_norm(dtype: torch.dtype, within: float) -> None:
    torch.manual_seed(1)
    layer = LlamaRMSNorm(256, eps=1e-5)
    with torch.no_grad():
        layer.weight.normal_()
    results = both(layer.to(dtype).requires_grad_(False), 3 * torch.randn(2, 7, 256, dtype=dtype))
    alike(results, within, count=1)
    if dtype == torch.bfloat16:  # rounded once, at the end
        assert (results[0][0] != results[1][0]).float().mean() < 0.01


def test_a_norm_that_is_trained_is_left_to_autograd() -> None:
    layer = LlamaRMSNorm(16)
    write_out(layer)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("size", [1.0, 1e4])  # at 1e4 all probabilities but one are 0 in float32
def test_cross_entropy(size: float) -> None:
    torch.manual_seed(1)
    logits, labels = size * torch.randn(30, 50), torch.randint(50, (30,))
    plain_logits, written_logits = (logits.clone().requires_grad_() for _ in range(2))
    plain = functional.cross_entropy(plain_logits, labels, reduction="sum")
    written = cross_entropy(written_logits.clone(), labels)
    (plain / 7).backward()
    (written / 7).backward()
    assert written.item() == pytest.approx(plain.item(), rel=1e-6)
    assert plain_logits.grad is not None
    assert written_logits.grad is not None
    assert (plain_logits.grad - written_logits.grad).abs().max() <= 1e-7
