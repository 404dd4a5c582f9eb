"""Two ways to pass through the network in training that change memory and time, not the numbers.

Blocks may be computed a second time instead of keeping what they gave, and the network may be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnetkit.errors import UserError
from resnetkit.model import Block, ResNet

Pass = Callable[[Tensor], Tensor]


def recompute_blocks(network: ResNet) -> None:
    """Activation checkpointing (arXiv 1604.06174): in training a block keeps its input alone until the backward pass.

    Changes the blocks of this network, and not of copies that were made before.
    """
    for block in network.blocks:
        block.forward = partial(recomputed, block, block.forward)  # type: ignore[method-assign]


def recomputed(block: Block, forward: Pass, x: Tensor) -> Tensor:
    """`forward` of the block, done again when gradients ask."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(x)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), still_statistics(block)

    result: Tensor = checkpoint(forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return result


@contextmanager
def still_statistics(block: nn.Module) -> Iterator[None]:
    """The block's running statistics stay: the second time through counts the batch into copies."""
    own = [(module, name, buffer) for module in block.modules() for name, buffer in module.named_buffers(recurse=False)]
    for module, name, buffer in own:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in own:
            setattr(module, name, buffer)


def compiled(network: nn.Module, *, graphs: bool = False) -> Pass:
    """`network` by torch.compile, anew for each size of input. Raises UserError where torch cannot compile here.

    graphs  record the kernels on a GPU as CUDA graphs and replay them. What a pass gives is then good until the next
            one, in which it is written over
    """
    function = torch.compile(network, dynamic=False, mode="reduce-overhead" if graphs else None)

    def forward(x: Tensor) -> Tensor:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            logits: Tensor = function(x)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            text = f"run.compile = true: torch cannot compile the network here ({reason}); set it to false"
            raise UserError(text) from None
        return logits

    return forward
