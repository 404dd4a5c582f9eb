"""Batch normalisation whose statistics are of other pictures than those that pass through the network at once.

ghost   of groups of g pictures (arXiv 1705.08741). One process with ghost batches of g computes what several processes
        compute that see g pictures each.
sync    of all pictures that pass through all processes at once.

Parameters and buffers have the names that they have in `torch.nn.BatchNorm2d`, which both are in evaluation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from resnetkit.recipe import Optim


class GhostNorm(nn.BatchNorm2d):
    """Statistics of each `group` pictures in a row; the running ones move towards the mean of the groups' own."""

    group: int

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        made, found = [], []
        for part in torch.split(x, self.group):
            own = torch.zeros(2, self.num_features, device=x.device)  # mean and unbiased variance, at momentum 1
            made.append(F.batch_norm(part, own[0], own[1], self.weight, self.bias, True, 1.0, self.eps))
            found.append(own)
        move_statistics(self, *torch.stack(found).mean(0))
        return torch.cat(made)


class SyncNorm(nn.BatchNorm2d):
    """Statistics over all processes, each of which must give as many pictures. torch has this for GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        wide = x.float()
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = summed(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = summed(centred.square().sum((0, 2, 3))) / count
        scale = self.weight * (variance + self.eps).rsqrt()
        move_statistics(self, mean.detach(), variance.detach() * (count / (count - 1)))
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None]).to(x.dtype)


class Summed(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs, as the loss is."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def summed(x: Tensor) -> Tensor:
    total: Tensor = Summed.apply(x)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def move_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """running += momentum (new - running), as torch does."""
    if norm.track_running_stats:
        norm.get_buffer("running_mean").lerp_(mean, norm.momentum or 0.0)
        norm.get_buffer("running_var").lerp_(variance, norm.momentum or 0.0)
        norm.get_buffer("num_batches_tracked").add_(1)


def set_statistics(network: nn.Module, optim: Optim, device: torch.device) -> None:
    """Make the batch normalisations of a network take their statistics as the recipe wants it."""
    if not optim.ghost_batch and not optim.sync_norm:
        return
    for name, norm in list(network.named_modules()):
        if isinstance(norm, nn.BatchNorm2d):
            kind = GhostNorm if optim.ghost_batch else nn.SyncBatchNorm if device.type == "cuda" else SyncNorm
            made = kind(norm.num_features, norm.eps, norm.momentum)
            for own, tensor in (*norm.named_parameters(), *norm.named_buffers()):
                setattr(made, own, tensor)
            if isinstance(made, GhostNorm):
                made.group = optim.ghost_batch
            network.set_submodule(name, made)
