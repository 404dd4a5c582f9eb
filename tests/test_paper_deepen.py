"""The deeper network that computes what the shallow one does: the same bits, and where no such network exists."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from resnetkit.model import Block, ResNet, architecture
from resnetkit.paper.deepen import deepened, make_identity
from resnetkit.weights import place


def noise(count: int, seed: int, side: int = 16, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


@cache
def shallow(name: str, side: int = 16, **choices: object) -> ResNet:
    """A plain network whose every number is an odd one: random weights, statistics moved by a few batches."""
    dice = torch.Generator().manual_seed(3)
    network = ResNet(architecture(name, classes=10, **choices)).train()  # type: ignore[arg-type]
    with torch.no_grad():
        for tensor in network.parameters():
            tensor += 0.1 * torch.randn(tensor.shape, generator=dice)
        for seed in range(3):
            network(noise(8, seed, side, network.arch.channels) + 0.3)
    return network.eval()


def added(deep: ResNet, own: ResNet) -> list[Block]:
    """The blocks that the shallow network does not have."""
    stages = zip(deep.stages, own.arch.blocks, strict=True)
    return [block for (_, stage), count in stages for block in list(stage.children())[count:]]  # type: ignore[misc]


@torch.no_grad()
def answers(network: ResNet, pictures: Tensor) -> Tensor:
    return network.eval()(pictures)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "deeper", "side"),
    [("plain8-cifar", "plain20-cifar", 16), ("plain20-cifar", "plain56-cifar", 16), ("plain18", "plain34", 33)],
)
def test_the_logits_are_the_same_bit_for_bit(name: str, deeper: str, side: int) -> None:
    own = shallow(name, side)
    before = {key: tensor.clone() for key, tensor in own.state_dict().items()}
    deep = deepened(own, deeper)
    pictures = torch.cat([noise(6, 10, side), 100 * noise(2, 11, side), torch.zeros(1, 3, side, side)])
    expected = answers(own, pictures)
    assert expected.std() > 0, "the shallow network tells pictures apart"
    assert torch.equal(answers(deep, pictures), expected)
    assert deep.arch.name == deeper
    assert len(deep.blocks) > len(own.blocks)
    assert all(torch.equal(tensor, before[key]) for key, tensor in own.state_dict().items()), "the given one is left"


def test_the_layout_of_memory_changes_nothing() -> None:
    cpu = torch.device("cpu")
    own = shallow("plain8-cifar")
    deep = place(deepened(own, "plain14-cifar"), cpu)
    again = place(deepened(own, "plain8-cifar"), cpu)
    pictures = noise(5, 20)
    assert torch.equal(answers(deep, pictures), answers(again, pictures))


@pytest.mark.parametrize(
    "choices", [{"init": "small"}, {"init": "xavier"}, {"channels": 1}, {"stem_stride": 2}], ids=str
)
def test_any_plain_network_with_normalisation_can_be_deepened(choices: dict[str, object]) -> None:
    own = shallow("plain8-cifar", **choices)
    deep = deepened(own, "plain14-cifar")
    pictures = noise(4, 30, channels=own.arch.channels)
    assert torch.equal(answers(deep, pictures), answers(own, pictures))


def test_as_many_layers_are_a_copy() -> None:
    own = shallow("plain8-cifar")
    copy = deepened(own, "plain8-cifar")
    assert copy is not own
    assert all(torch.equal(tensor, copy.state_dict()[key]) for key, tensor in own.state_dict().items())


def test_nothing_negative_reaches_an_identity_block() -> None:
    own = shallow("plain8-cifar")
    deep = deepened(own, "plain20-cifar")
    identities = added(deep, own)
    assert len(identities) == 6
    entering: list[Tensor] = []
    for block in identities:
        block.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0].clone()))
    normalised: list[Tensor] = []
    for block in deep.blocks:
        block.get_submodule("bn2").register_forward_hook(lambda _, __, output: normalised.append(output.clone()))
    answers(deep, noise(8, 40) - 1)
    assert min(tensor.min() for tensor in normalised) < 0, "without the ReLUs there would be negative ones"
    assert len(entering) == 6
    assert min(tensor.min() for tensor in entering) == 0


def test_an_identity_block_gives_back_what_is_not_negative() -> None:
    block = ResNet(architecture("plain8-cifar")).blocks[0].eval()
    make_identity(block)
    x = 100 * noise(2, 50, channels=16)
    with torch.no_grad():
        assert torch.equal(block(x.clamp(min=0)), x.clamp(min=0))
        assert torch.equal(block(x.clone()), x.clamp(min=0)), "negative inputs are lost: it needs a ReLU before it"


def test_the_identity_blocks_can_be_trained() -> None:
    own = shallow("plain8-cifar")
    deep = deepened(own, "plain14-cifar")
    wanted = sum(p.numel() for p in ResNet(architecture("plain14-cifar", classes=10)).parameters())
    assert sum(p.numel() for p in deep.parameters() if p.requires_grad) == wanted
    before = [[tensor.clone() for tensor in block.parameters()] for block in added(deep, own)]
    deep.train()
    sgd = torch.optim.SGD(deep.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(deep(noise(8, 60)), torch.arange(8)).backward()
    sgd.step()
    for block, old in zip(added(deep, own), before, strict=True):
        names = [name for name, _ in block.named_parameters()]
        changed = [not torch.equal(a, b) for a, b in zip(block.parameters(), old, strict=True)]
        assert all(changed), dict(zip(names, changed, strict=True))


@pytest.mark.parametrize(
    ("name", "choices", "deeper", "reason"),
    [
        ("resnet8-cifar", {}, "resnet14-cifar", "resnet8-cifar: identity layers are added to plain networks"),
        ("resnet8-cifar", {}, "plain14-cifar", "resnet8-cifar: identity layers are added to plain networks"),
        ("plain8-cifar", {"preactivation": True}, "plain14-cifar", "identity layers are added to plain networks"),
        ("plain8-cifar", {"norm": "none"}, "plain14-cifar", "identity layers are added to plain networks"),
        ("plain14-cifar", {}, "plain8-cifar", "plain8-cifar: has fewer layers than plain14-cifar"),
        ("plain8-cifar", {}, "resnet14-cifar", "resnet14-cifar: is of another kind than plain8-cifar"),
        ("plain8-cifar", {}, "plain18", "plain18: is of another kind than plain8-cifar"),
        ("plain8-cifar", {}, "plain9-cifar", "6n\\+2"),
    ],
)
def test_what_has_no_such_network_is_refused(name: str, choices: dict[str, object], deeper: str, reason: str) -> None:
    own = ResNet(architecture(name, classes=10, **choices))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=reason):
        deepened(own, deeper)
