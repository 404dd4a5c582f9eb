"""LAMB (arXiv 1904.00962): Adam's step, scaled for each tensor to the tensor's own length. Needs torch alone.

What implementations leave open is as in timm's `Lamb`, with which the published A1 to A3 networks were trained
(arXiv 2110.00476): Adam's bias correction is done, the length of a tensor is taken as it is (the paper's phi is the
identity), ratios are not clipped (that is timm's "LAMBC"), and a group without weight decay, normalisation and biases,
takes Adam's own step. timm also clips the norm of all gradients to 1; here that is `optim.clip`, for every optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SECOND = 0.999  # decay of the mean square
EPSILON = 1e-6  # added to its root


class Lamb(Optimizer):
    """g: gradient, w: tensor, m and v its first and second moment, t the number of the step from 1 on:

    m = momentum m + (1 - momentum) g;  v = 0.999 v + 0.001 g^2
    u = (m / (1 - momentum^t)) / (sqrt(v / (1 - 0.999^t)) + 1e-6) + weight_decay w
    w = w - lr u |w| / |u|, where either length is 0, or weight_decay is, w - lr u

    All tensors of a group go through each operation together (torch's foreach functions).
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "step": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every tensor that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            group["step"] += 1
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self.step_of(weights, group)

    def step_of(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                kinds = ("momentum_buffer", "square_buffer")
                self.state[weight] = {kind: torch.zeros_like(weight) for kind in kinds}
        first = [self.state[weight]["momentum_buffer"] for weight in weights]
        second = [self.state[weight]["square_buffer"] for weight in weights]
        torch._foreach_lerp_(first, gradients, 1 - group["momentum"])
        torch._foreach_mul_(second, SECOND)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - SECOND)
        roots = torch._foreach_sqrt(second)
        torch._foreach_div_(roots, (1 - SECOND ** group["step"]) ** 0.5)
        torch._foreach_add_(roots, EPSILON)
        updates = torch._foreach_div(first, 1 - group["momentum"] ** group["step"])
        torch._foreach_div_(updates, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
            own, change = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
            ratio = torch.where((own > 0) & (change > 0), own / change, 1.0)
            torch._foreach_mul_(updates, list(ratio.unbind()))
        torch._foreach_add_(weights, updates, alpha=-group["lr"])
