"""The ONNX graph: valid, called as in the model, all normalisations folded that can be, dynamic in the batch alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from resnetkit.engines.files import Input
from resnetkit.weights import ModelFile
from test_engines_parity import COLOUR, make_model

onnx = pytest.importorskip("onnx")
graphs = pytest.importorskip("resnetkit.engines.graph")

SMALL = replace(COLOUR, size=32)
NETWORKS = ["resnet18", "resnet26d", "seresnext26_32x4d", "resnetv2_26", "resnet20-cifar", "plain18", "resnet50-caffe"]


def graph_of(model: ModelFile, input: Input = "uint8") -> Any:
    return graphs.onnx_graph(model.network, model.preprocess, input)


@cache
def model_called(name: str) -> ModelFile:
    return make_model(name, SMALL)


@cache
def graph_called(name: str) -> Any:
    return graph_of(model_called(name))


def weights_of(graph: Any) -> dict[str, Any]:
    return {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.graph.initializer}


def kinds_of(graph: Any) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


@pytest.mark.parametrize("input", ["uint8", "float"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_valid_and_only_the_batch_is_open(name: str, input: Input) -> None:
    graph = graph_called(name) if input == "uint8" else graph_of(model_called(name), input)
    onnx.checker.check_model(graph)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 17)]
    assert graph.ir_version == 9
    (given,), (answer,) = graph.graph.input, graph.graph.output
    shapes = [[dim.dim_param or dim.dim_value for dim in part.type.tensor_type.shape.dim] for part in (given, answer)]
    wanted = ["batch", 32, 32, 3] if input == "uint8" else ["batch", 3, 32, 32]
    assert (given.name, shapes[0]) == ("pictures" if input == "uint8" else "input", wanted)
    assert (answer.name, shapes[1]) == ("logits", ["batch", 7])
    names = [node.name for node in graph.graph.node]
    assert len(set(names)) == len(names)
    assert not any("/" in weight.name or weight.data_location for weight in graph.graph.initializer)


@pytest.mark.parametrize("name", NETWORKS)
def test_nodes_are_called_as_in_the_model(name: str) -> None:
    layers = {
        key: part for key, part in model_called(name).network.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)
    }
    found = {node.name: node for node in graph_called(name).graph.node if node.op_type in ("Conv", "Gemm")}
    assert set(found) == set(layers)
    for key, node in found.items():
        assert list(node.input)[1:] == [f"{key}.weight", f"{key}.bias"]


def test_what_stands_in_a_basic_block() -> None:
    names = [node.name for node in graph_called("resnet18").graph.node]
    layer = [name for name in names if name.startswith("layer2.0")]
    assert layer == [
        *(f"layer2.0.{part}" for part in ("downsample.0", "conv1", "relu", "conv2", "add", "relu_2")),
    ]
    assert names[:4] == [f"preprocess.{step}" for step in ("cast", "transpose", "scale", "shift")]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_normalisation_is_left_only_where_no_convolution_goes_before_it(name: str) -> None:
    graph = graph_called(name)
    makers = {node.output[0]: node for node in graph.graph.node}
    readers = Counter(value for node in graph.graph.node for value in node.input)
    left = [node for node in graph.graph.node if node.op_type == "BatchNormalization"]
    assert (left != []) == model_called(name).network.arch.preactivation
    for node in left:
        before = makers[node.input[0]]
        assert before.op_type != "Conv" or readers[node.input[0]] > 1


@pytest.mark.parametrize("name", NETWORKS)
def test_as_many_steps_as_the_network_takes(name: str) -> None:
    """Counted while the network itself runs."""
    model = model_called(name)
    run: Counter[str] = Counter()
    hooks, kinds = [], {nn.Conv2d: "Conv", nn.Linear: "Gemm", nn.ReLU: "Relu"}
    for module in model.network.modules():
        if type(module) in kinds:
            hooks.append(module.register_forward_hook(lambda module, *_: run.update([kinds[type(module)]])))
    with torch.no_grad():
        model.network(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    graph, arch = kinds_of(graph_called(name)), model.network.arch
    assert {kind: graph[kind] for kind in ("Conv", "Gemm")} == {kind: run[kind] for kind in ("Conv", "Gemm")}
    blocks = sum(arch.blocks)
    inside = 3 if arch.block == "bottleneck" else 2
    functional = blocks * (inside * arch.preactivation + arch.se)  # F.relu, which has no module
    assert graph["Relu"] == run["Relu"] + functional
    assert graph["Add"] == (0 if arch.shortcut == "none" else blocks) + 1  # and the one of the preprocessing
    assert graph["Sigmoid"] == graph["Mul"] - 1 == blocks * arch.se


def test_weights_are_those_folded_by_hand() -> None:
    weights, network = weights_of(graph_called("resnet26d")), model_called("resnet26d").network
    for conv, norm in (("conv1.6", "bn1"), ("layer2.0.conv2", "layer2.0.bn2"), ("layer3.0.downsample.1", None)):
        norm_of: Any = network.get_submodule(norm or "layer3.0.downsample.2")
        scale = norm_of.weight.double() / torch.sqrt(norm_of.running_var.double() + norm_of.eps)
        weight: Any = network.get_submodule(conv).weight
        wanted = (weight.double() * scale[:, None, None, None]).float().detach().numpy()
        np.testing.assert_array_equal(weights[f"{conv}.weight"], wanted)
        bias = (norm_of.bias.double() - norm_of.running_mean.double() * scale).float().detach().numpy()
        np.testing.assert_array_equal(weights[f"{conv}.bias"], bias)
    np.testing.assert_array_equal(weights["fc.weight"], network.fc.weight.detach().numpy())
    assert all(value.dtype == np.float32 for value in weights.values())


def test_a_bgr_network_gets_its_first_weights_turned_only_where_the_graph_normalises() -> None:
    model = make_model("resnet18", replace(SMALL, order="BGR"))
    taken, plain = (weights_of(graph_of(model, input)) for input in ("uint8", "float"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(taken["conv1.weight"], plain["conv1.weight"][:, ::-1])
    np.testing.assert_array_equal(taken["layer1.0.conv1.weight"], plain["layer1.0.conv1.weight"])
    assert not any(name.startswith("preprocess") for name in plain)


def test_the_model_is_as_it_was_and_the_graph_the_same_again() -> None:
    model = make_model("resnet20-cifar", SMALL)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    first, second = (graph_of(model).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
