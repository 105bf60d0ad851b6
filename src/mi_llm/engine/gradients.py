"""Parts of a model whose gradients are written out, so that training passes over memory less often than autograd would.

On a CPU, one pass over a row of activations takes as long as a small matrix product. `write_out` gives a model's LoRA
layers and RMS norms the forward passes below. What they compute is what peft and transformers compute; what those load and save
stays the same. All tensors are [tokens, width], or have more dimensions before the width.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import linear


def write_out(model: nn.Module) -> list[str]:
    """Change a model's layers in place: LoRA on a plain linear layer without dropout, and RMS norms whose weight is frozen.

    LoRA with dropout, or on a 4-bit layer, is left to peft; a norm that is computed otherwise, to autograd. Returns the classes
    of such norms.
    """
    left = set[str]()
    for layer in model.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear and type(layer.lora_dropout["default"]) is nn.Identity:
            layer.forward = partial(lora, layer)
        elif isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False  # autocast casts, once
        elif type(layer).__name__.endswith("RMSNorm") and not layer.weight.requires_grad:
            if is_norm(type(layer)):
                layer.forward = partial(norm, layer)
            else:
                left.add(type(layer).__name__)
    return sorted(left)


def is_norm(kind: Any) -> bool:
    """Whether a class computes what `norm` does; Gemma's, for one, multiplies by 1 + weight."""
    try:
        layer = kind(8)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, 8))
            x = torch.linspace(-1, 3, 8)
            return bool(torch.allclose(norm(layer, x), layer(x)))
    except (TypeError, AttributeError):  # made with other arguments, or with other names in it
        return False


def lora(layer: Any, x: Tensor) -> Tensor:
    """A frozen linear layer and its LoRA, in its precision: `W x + bias + scaling B A x` (Hu et al. 2021, section 4.1)."""
    base, flat = layer.base_layer, x.flatten(0, -2)
    down, up = (matrices["default"].weight.to(base.weight.dtype) for matrices in (layer.lora_A, layer.lora_B))
    output: Tensor = Lora.apply(flat.to(base.weight.dtype), base.weight, base.bias, down, up, layer.scaling["default"])
    return output.unflatten(0, x.shape[:-1])


class Lora(Function):  # type: ignore[misc]
    """`x W' + bias + scaling (x A') B'`, where each matrix product adds itself to the sum."""

    @staticmethod
    def forward(  # noqa: D102, PLR0917
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        low = x @ down.t()
        ctx.save_for_backward(x, weight, down, up, low)
        ctx.scaling = scaling
        return linear(x, weight, bias).addmm_(low, up.t(), alpha=scaling)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight, down, up, low = ctx.saved_tensors
        grad_low = (grad @ up).mul_(ctx.scaling)
        grad_x = (grad @ weight).addmm_(grad_low, down) if ctx.needs_input_grad[0] else None
        grad_up = (low.t() @ grad).mul_(ctx.scaling).t()  # four times as fast as grad' low, on a processor
        return grad_x, None, None, grad_low.t() @ x, grad_up, None


def norm(layer: Any, x: Tensor) -> Tensor:
    """An RMS norm, computed in float32 as transformers does: `x / rms(x) * weight` (Zhang and Sennrich 2019, equation 4)."""
    output: Tensor = Norm.apply(x, layer.weight, layer.variance_epsilon)
    return output


class Norm(Function):  # type: ignore[misc]
    """`n = r x` with `r = (mean(x^2) + epsilon)^(-1/2)`; where n has the gradient g, x has `r (g - n mean(g n))`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:  # noqa: D102
        x32 = x.float()
        with torch.autocast(x.device.type, enabled=False):  # it would take vecdot to bfloat16
            r = torch.linalg.vecdot(x32, x32).div_(x.shape[-1]).add_(epsilon).rsqrt_().unsqueeze(-1)
        n = (x32 * r).to(x.dtype)
        ctx.save_for_backward(n, r, weight)
        return n * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        n, r, weight = ctx.saved_tensors
        g = (grad * weight).float()
        mean = torch.linalg.vecdot(g, n.float()).div_(n.shape[-1]).unsqueeze(-1)
        return g.addcmul_(n.float(), mean, value=-1).mul_(r).to(grad.dtype), None, None


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of `-log softmax(logits)[label]` over rows; logits [rows, vocabulary] are overwritten with their gradient."""
    total: Tensor = CrossEntropy.apply(logits, labels)
    return total


class CrossEntropy(Function):  # type: ignore[misc]
    """`log sum(exp(logits)) - logits[label]`; its gradient is softmax(logits), less 1 at the label."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        columns = labels[:, None]
        logits.sub_(logits.amax(-1, keepdim=True))
        of_labels = logits.gather(-1, columns)
        total = logits.exp_().sum(-1, keepdim=True)
        logits.div_(total)
        ctx.save_for_backward(logits.scatter_(-1, columns, logits.gather(-1, columns) - 1))
        return (total.log() - of_labels).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: D102
        return ctx.saved_tensors[0].mul_(grad), None
