"""What a network gives to detectors and segmenters: the maps of its stages, and the vector its dense layer sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resnetkit.model import ResNet, architecture

FACTS = json.loads((Path(__file__).parent / "model_facts.json").read_text())
STAGES = ("conv2_x", "conv3_x", "conv4_x", "conv5_x")
VARIANTS: list[tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]]] = [
    ("resnet18", {}, (4, 8, 16, 32), (64, 128, 256, 512)),
    ("resnet18", {"stem_stride": 2, "shortcut": "A"}, (2, 4, 8, 16), (64, 128, 256, 512)),
    ("resnet18", {"stem_stride": 1, "shortcut": "C"}, (1, 2, 4, 8), (64, 128, 256, 512)),
    ("resnet18", {"preactivation": True}, (4, 8, 16, 32), (64, 128, 256, 512)),
    ("plain18", {"norm": "none"}, (4, 8, 16, 32), (64, 128, 256, 512)),
    ("resnet50", {}, (4, 8, 16, 32), (256, 512, 1024, 2048)),
    ("resnet50", {"stride": "1x1"}, (4, 8, 16, 32), (256, 512, 1024, 2048)),
    ("resnet50", {"preactivation": True, "stem_stride": 2}, (2, 4, 8, 16), (256, 512, 1024, 2048)),
    ("resnet20-cifar", {}, (1, 2, 4), (16, 32, 64)),
    ("resnet20-cifar", {"preactivation": True, "norm": "none"}, (1, 2, 4), (16, 32, 64)),
    ("resnet20-cifar", {"stem_stride": 2}, (2, 4, 8), (16, 32, 64)),
]


def network(name: str, **choices: Any) -> ResNet:
    """With batch normalisation's statistics away from 0 and 1, so that it does something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ResNet(architecture(name, classes=7, **choices))
        for key, buffer in made.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5).sub_(float(key.endswith("mean")))
    return made.eval()


def pictures(count: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fact", FACTS["imagenet"]["networks"], ids=lambda fact: fact["arch"])
def test_the_maps_are_those_of_the_papers_table(fact: dict[str, Any]) -> None:
    expected = [tuple(FACTS["stages"][fact["block"]][stage]) for stage in STAGES]
    with torch.device("meta"):
        model = ResNet(architecture(fact["arch"])).eval()
        maps = model.features(torch.zeros(1, *FACTS["stages"]["input"]))
    assert [tuple(x.shape[1:]) for x in maps] == expected
    assert model.feature_channels == tuple(channels for channels, _, _ in expected)
    assert model.feature_strides == tuple(224 // side for _, side, _ in expected) == (4, 8, 16, 32)


@pytest.mark.parametrize(("name", "choices", "strides", "channels"), VARIANTS)
@pytest.mark.parametrize("size", [(64, 64), (33, 47), (1, 5)], ids=str)
def test_channels_and_strides_of_every_variant(
    name: str,
    choices: dict[str, Any],
    strides: tuple[int, ...],
    channels: tuple[int, ...],
    size: tuple[int, int],
) -> None:
    """A side that a stride does not divide is rounded up."""
    with torch.device("meta"):
        model = ResNet(architecture(name, channels=1, **choices)).eval()
        maps = model.features(torch.zeros(2, 1, *size))
    assert (model.feature_strides, model.feature_channels) == (strides, channels)
    rounded = [tuple(-(-side // stride) for side in size) for stride in strides]
    assert [tuple(x.shape) for x in maps] == [
        (2, width, *sides) for width, sides in zip(channels, rounded, strict=True)
    ]


@pytest.mark.parametrize(("name", "choices"), [(name, choices) for name, choices, _, _ in VARIANTS])
def test_maps_and_vectors_are_those_of_the_forward_pass(name: str, choices: dict[str, Any]) -> None:
    """Seen from outside, as they leave each stage and reach the dense layer while the network answers."""
    model = network(name, **choices)
    left: list[Tensor] = []
    entered: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda *call: left.append(call[2].clone())) for _, stage in model.stages]
    hooks.append(model.fc.register_forward_pre_hook(lambda _, arguments: entered.append(arguments[0].clone())))
    x = pictures(2, 3, 35, 50)
    with torch.no_grad():
        logits = model(x)
        for hook in hooks:
            hook.remove()
        maps, vectors = model.features(x), model.embed(x)
        torch.testing.assert_close(model.fc(vectors), logits)
    torch.testing.assert_close(vectors, entered[0])
    torch.testing.assert_close(vectors, maps[-1].mean((2, 3)))
    assert vectors.shape == (2, model.feature_channels[-1])
    assert not torch.equal(vectors[0], vectors[1])
    # With preactivation the last map is normalised and activated once more on its way to the dense layer.
    kept = len(maps) - bool(choices.get("preactivation"))
    assert len(maps) == len(left)
    for got, expected in zip(maps[:kept], left, strict=False):
        torch.testing.assert_close(got, expected)
    assert (maps[-1] >= 0).all()
    assert (maps[0] < 0).any() == bool(choices.get("preactivation")), "what a stage adds is activated, or not yet"


@pytest.mark.parametrize("name", ["resnet18", "resnet20-cifar"])
def test_a_map_trains_the_stages_that_lead_to_it(name: str) -> None:
    model = network(name).train()
    model.features(pictures(2, 3, 32, 32))[1].square().sum().backward()
    trained = {key.partition(".")[0] for key, weights in model.named_parameters() if weights.grad is not None}
    assert trained == {"conv1", "bn1", "layer1", "layer2"}
    assert all(bool(weights.grad.any()) for weights in model.layer2.parameters())
