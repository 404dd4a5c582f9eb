"""The argument of Sec. 1: a deeper network need not err more, for it could be the shallow one and identity layers.

Built here for plain networks. In a block whose convolutions are Dirac kernels and whose batch normalisation has mean 0,
variance 1 - eps, weight 1 and bias 0, every product is with 0 or 1 and every square root of 1, so nothing is rounded;
and what enters comes from a ReLU, which the block's own ReLUs then leave as it is. So the answers are the same.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from resnetkit.model import Block, ResNet, architecture


def deepened(shallow: ResNet, name: str) -> ResNet:
    """The network called `name`, of the same kind and deeper, that computes what `shallow` computes in evaluation.

    Each stage holds the shallow one's blocks and then identities. Raises ValueError where no such network exists.
    """
    own = shallow.arch
    if own.shortcut != "none" or own.preactivation or own.norm != "batch":
        raise ValueError(f"{own.name}: identity layers are added to plain networks with batch normalisation after them")
    wanted = architecture(
        name,
        classes=own.classes,
        channels=own.channels,
        stride=own.stride,
        stem_stride=own.stem_stride,
        init=own.init,
    )
    if replace(wanted, name=own.name, blocks=own.blocks) != own:
        raise ValueError(f"{name}: is of another kind than {own.name}")
    if any(more < fewer for more, fewer in zip(wanted.blocks, own.blocks, strict=True)):
        raise ValueError(f"{name}: has fewer layers than {own.name}")
    deep = ResNet(wanted).to(next(shallow.parameters()).device).eval()
    tensors = {key: tensor for key, tensor in shallow.state_dict().items() if not key.startswith("layer")}
    deep.load_state_dict(tensors, strict=False)
    for (stage_name, stage), count in zip(deep.stages, own.blocks, strict=True):
        given = shallow.get_submodule(stage_name)
        for index, block in enumerate(stage.children()):
            assert isinstance(block, Block)
            if index < count:
                block.load_state_dict(given.get_submodule(str(index)).state_dict())
            else:
                make_identity(block)
    return deep


@torch.no_grad()
def make_identity(block: Block) -> None:
    """Let a plain block give back what it gets, where that is not negative."""
    for convolution, norm in block.layers:
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.dirac_(convolution.weight)
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
