"""Activation checkpointing and torch.compile: other memory and time, the same training."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from resnetkit import passes
from resnetkit.errors import UserError
from resnetkit.model import Architecture, ResNet, architecture
from resnetkit.passes import compiled, recompute_blocks

pytestmark = pytest.mark.usefixtures("one_thread")


def made(name: str) -> ResNet:
    torch.manual_seed(0)
    return ResNet(architecture(name, classes=5, stem_stride=2, shortcut="B")).train()


def trained(network: ResNet, forward: passes.Pass, parts: int = 2) -> dict[str, Tensor]:
    """Gradients over parts of a batch, and what the network is afterwards."""
    dice = torch.Generator().manual_seed(1)
    for _ in range(parts):
        x = torch.randn(4, 3, 32, 32, generator=dice)
        torch.autograd.backward(F.cross_entropy(forward(x), torch.tensor([0, 1, 2, 3])))
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return found | {f"buffer.{name}": tensor for name, tensor in network.named_buffers()}


@pytest.mark.parametrize("skipped", [[], [1, 3]], ids=["all", "some blocks skipped"])
@pytest.mark.parametrize("name", ["resnet18", "seresnet26", "resnetv2_18"])
def test_checkpointing_gives_the_same_bits(name: str, skipped: list[int]) -> None:
    """Gradients and running statistics: the batch is counted once though blocks see it twice."""
    plain, other = made(name), made(name)
    recompute_blocks(other)
    for network in (plain, other):
        for index, block in enumerate(network.blocks):
            block.scale = 0.0 if index in skipped else 1.25
    expected, found = trained(plain, plain), trained(other, other)
    assert found.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def test_blocks_are_computed_twice_in_training_alone() -> None:
    """Counted at the convolutions: that is what the memory is paid with."""
    network = made("resnet18")
    recompute_blocks(network)
    seen: list[str] = []
    network.blocks[0].conv1.register_forward_hook(lambda *_: seen.append("block"))
    network.conv1.register_forward_hook(lambda *_: seen.append("stem"))
    trained(network, network, parts=1)
    assert sorted(seen) == ["block", "block", "stem"]
    seen.clear()
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert sorted(seen) == ["block", "stem"]


def test_less_is_kept_for_the_backward_pass() -> None:
    """The bytes that autograd saves between the passes, by a hook on each."""
    kept = {}
    for name in ("plain", "recomputed"):
        network, sizes = made("resnet18"), []
        if name == "recomputed":
            recompute_blocks(network)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, own=sizes: own.append(t.nbytes) or t, lambda t: t):
            network(torch.zeros(4, 3, 64, 64))
        kept[name] = sum(sizes)
    assert kept["recomputed"] < 0.5 * kept["plain"]


def test_a_copy_is_a_network_of_its_own() -> None:
    """What is copied after, as before, answers with its own weights."""
    network = made("resnet18").eval()
    recompute_blocks(network)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.blocks[2].parameters():
            parameter.zero_()
        x = torch.randn(1, 3, 32, 32)
        assert not torch.equal(network(x), other(x))
    assert other.state_dict().keys() == made("resnet18").state_dict().keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # while torch loads its compiler
def test_compiling_gives_the_same_gradients() -> None:
    """In fp32, summed in another order; what is evaluated is the network itself."""
    smallest = Architecture("smallest", "basic", (1,), width=8, stem_stride=2, classes=5)  # each kernel takes seconds
    plain, other = ResNet(smallest), ResNet(smallest)
    other.load_state_dict(plain.state_dict())
    try:
        expected, found = trained(plain, plain), trained(other, compiled(other))
    except UserError as error:
        pytest.skip(str(error))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4, msg=key)
    assert other.state_dict().keys() == plain.state_dict().keys()


def test_cuda_graphs_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of torch, and when a step begins; the replay itself needs a GPU."""
    asked: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda network, **about: asked.append(about["mode"]) or network)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: asked.append("step"))
    network, x = made("resnet8-cifar"), torch.zeros(1, 3, 32, 32)
    for graphs in (True, False):
        forward = compiled(network, graphs=graphs)
        assert torch.equal(forward(x), network(x))
    assert asked == ["reduce-overhead", "step", None]


def test_what_cannot_be_compiled_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> passes.Pass:
        def function(_: Tensor) -> Tensor:
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nand a long trace")

        return function

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"run\.compile = true: .*\(no compiler\); set it to false$"):
        compiled(made("resnet8-cifar"))(torch.zeros(1, 3, 32, 32))
