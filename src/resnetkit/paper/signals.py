"""What goes through a network, layer by layer: responses forward, gradients backward.

A layer is a convolution in the order of the depth, without projections. Its response is taken where Figure 7 takes it:
after batch normalisation, before the addition and the nonlinearity; without normalisation after the convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetkit.model import ResNet


def layers(network: ResNet) -> list[tuple[nn.Module, nn.Module]]:
    """Each convolution of the depth with the module whose output is its response."""
    pairs = [(network.conv1, network.bn1), *(pair for block in network.blocks for pair in block.layers)]
    if network.arch.preactivation:  # normalisation stands before the convolution there
        return [(convolution, convolution) for convolution, _ in pairs]
    return pairs


def responses(network: ResNet, pictures: Tensor) -> tuple[list[Tensor], Tensor]:
    """The response of each layer to normalised pictures (N, C, H, W), and the logits, in the network's own mode."""
    seen: list[Tensor] = []
    hooks = [  # copied, because ReLU overwrites it
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach().clone()))
        for _, module in layers(network)
    ]
    try:
        logits = network(pictures)
    finally:
        for hook in hooks:
            hook.remove()
    return seen, logits


def signals(network: ResNet, pictures: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """How strong the signal is at each layer, as in a step of training: normalised by the batch itself.

    variance   of the layer's response over pictures, channels and places; Figure 7 shows its square root
    gradient   norm of the loss's gradient with respect to the layer's weights, backward

    With running statistics instead, a few pictures unlike the average can grow from block to block and outweigh all
    others. Not finite numbers are given as they are. Weights are not changed; running statistics move, as in a step.
    """
    network.train()
    network.zero_grad(set_to_none=True)
    with torch.enable_grad():
        found, logits = responses(network, pictures)
        torch.autograd.backward(F.cross_entropy(logits, labels))
    gradients = [convolution.get_parameter("weight").grad for convolution, _ in layers(network)]
    assert all(gradient is not None for gradient in gradients)
    strong = {
        "variance": [tensor.var().item() for tensor in found],
        "gradient": [gradient.norm().item() for gradient in gradients if gradient is not None],
    }
    network.zero_grad(set_to_none=True)
    return strong
