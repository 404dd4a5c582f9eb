"""A network as an ONNX graph: the form in which it goes to every engine.

The graph is what torch.fx sees of `ResNet.forward`, node by node, so it follows the model and is no second description
of it. Batch normalisation that follows a convolution is folded into it, in double precision. Nodes and weights are
called as in the model: `layer1.0.conv1`, `layer1.0.conv1.weight`. The batch is dynamic; nothing else is.

Input: `pictures`, uint8 (batch, size, size, C) as `Preprocess.fit` gives them, which the graph normalises itself; or
`input`, float32 (batch, C, size, size), normalised already. Output: `logits`, float32 (batch, classes).
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from resnetkit.data.transforms import Preprocess
from resnetkit.engines.folding import TRACING
from resnetkit.model import ResNet

OPSET, IR_VERSION = 17, 9  # of 2022: everything that is still in use reads them
Input = Literal["uint8", "float"]
Array = NDArray[Any]


def onnx_graph(network: ResNet, preprocess: Preprocess, input: Input = "uint8") -> onnx.ModelProto:
    """The network in evaluation mode. Its class names and the like are not in it; see `engines.writing`."""
    network = network.eval()
    writer = Writer(network, preprocess, input)
    with TRACING:
        traced = fx.symbolic_trace(network)
    for node in traced.graph.nodes:
        writer.write(node)
    size, channels = preprocess.size, preprocess.channels
    shape: list[str | int | None] = (
        ["batch", size, size, channels] if input == "uint8" else ["batch", channels, size, size]
    )
    kind = TensorProto.UINT8 if input == "uint8" else TensorProto.FLOAT
    graph = helper.make_graph(
        writer.nodes,
        network.arch.name,
        [helper.make_tensor_value_info(writer.input, kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", network.arch.classes])],
        [numpy_helper.from_array(value, name) for name, value in writer.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "resnetkit"
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model), full_check=True)
    return model


class Writer:
    """Turns one fx node after the other into ONNX nodes; `values` says which ONNX value each of them gives."""

    def __init__(self, network: ResNet, preprocess: Preprocess, input: Input) -> None:
        self.network, self.preprocess = network, preprocess
        self.input = "pictures" if input == "uint8" else "input"
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.values: dict[fx.Node, str] = {}
        self.used: Counter[str] = Counter()
        self.folded: set[fx.Node] = set()  # normalisations that are in the convolution before them
        self.calls: dict[Any, Callable[[fx.Node, str], str]] = {
            operator.iadd: lambda node, name: self.binary("Add", node, name),
            operator.add: lambda node, name: self.binary("Add", node, name),
            operator.mul: lambda node, name: self.binary("Mul", node, name),
            operator.getitem: self.strided,
            F.relu: lambda node, name: self.add("Relu", name, [self.of(node, 0)]),
            F.pad: self.padded,
            "mean": self.pooled,
            "sigmoid": lambda node, name: self.add("Sigmoid", name, [self.of(node, 0)]),
        }

    def write(self, node: fx.Node) -> None:
        """Add what the node does. An operation that is not known here is a fault of ours, not of a user."""
        if node.op == "placeholder":
            self.values[node] = self.normalised() if self.input == "pictures" else self.input
        elif node.op == "output":
            assert self.nodes[-1].output[0] == self.values[node.args[0]]  # type: ignore[index]
            self.nodes[-1].output[0] = "logits"
        elif node.op == "call_module":
            self.values[node] = self.module(node, str(node.target), self.network.get_submodule(str(node.target)))
        else:
            path, _ = next(reversed(node.meta.get("nn_module_stack", {"": ("", None)}).values()))
            kind = node.name.partition("_")[0]
            self.values[node] = self.calls[node.target](node, f"{path}.{NAMES.get(kind, kind)}".removeprefix("."))

    def of(self, node: fx.Node, index: int) -> str:
        """The ONNX value of an argument."""
        argument = node.args[index]
        assert isinstance(argument, fx.Node)
        return self.values[argument]

    def add(self, kind: str, name: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node; the value it gives has the node's name. A name that comes again is numbered."""
        self.used[name] += 1
        if self.used[name] > 1:
            name = f"{name}_{self.used[name]}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def weight(self, name: str, value: Array) -> str:
        self.weights[name] = np.ascontiguousarray(value)
        return name

    def normalised(self) -> str:
        """uint8 (N, size, size, C) to what the network was trained on; a BGR network gets its first weights turned."""
        scale, shift = self.preprocess.affine
        if self.preprocess.order == "BGR":
            scale, shift = scale[:, ::-1], shift[:, ::-1]
        value = self.add("Cast", "preprocess.cast", ["pictures"], to=TensorProto.FLOAT)
        value = self.add("Transpose", "preprocess.transpose", [value], perm=[0, 3, 1, 2])
        value = self.add("Mul", "preprocess.scale", [value, self.weight("preprocess.scale.weight", scale)])
        return self.add("Add", "preprocess.shift", [value, self.weight("preprocess.shift.bias", shift)])

    def module(self, node: fx.Node, name: str, module: nn.Module) -> str:
        x = self.of(node, 0)
        if isinstance(module, nn.Identity) or node in self.folded:
            return x
        if isinstance(module, nn.Conv2d):
            return self.convolution(node, name, module, x)
        if isinstance(module, nn.BatchNorm2d):  # of a network that normalises before it convolves
            parts = [module.weight, module.bias, module.running_mean, module.running_var]
            names = [self.weight(f"{name}.{key}", array(part)) for key, part in zip(NORM, parts, strict=True)]
            return self.add("BatchNormalization", name, [x, *names], epsilon=module.eps)
        if isinstance(module, nn.Linear):
            bias = self.weight(f"{name}.bias", array(module.bias))
            return self.add("Gemm", name, [x, self.weight(f"{name}.weight", array(module.weight)), bias], transB=1)
        if isinstance(module, nn.MaxPool2d):
            sides = {"kernel_shape": [module.kernel_size] * 2, "strides": [module.stride] * 2}
            pads = [module.padding] * 4
            return self.add("MaxPool", name, [x], **sides, pads=pads, ceil_mode=int(module.ceil_mode))
        if isinstance(module, nn.AvgPool2d):
            sides = {"kernel_shape": [module.kernel_size] * 2, "strides": [module.stride] * 2}
            return self.add("AveragePool", name, [x], **sides, ceil_mode=1, count_include_pad=0)
        assert isinstance(module, nn.ReLU), f"{name}: {type(module).__name__} has no ONNX form here"
        return self.add("Relu", name, [x])

    def convolution(self, node: fx.Node, name: str, module: nn.Conv2d, x: str) -> str:
        """The convolution, with the normalisation that alone reads it."""
        weight = module.weight.detach().double()
        bias = torch.zeros(len(weight)).double() if module.bias is None else module.bias.detach().double()
        reader = next(iter(node.users))
        norm = self.network.get_submodule(str(reader.target)) if reader.op == "call_module" else None
        if isinstance(norm, nn.BatchNorm2d) and len(node.users) == 1:
            self.folded.add(reader)
            assert norm.running_var is not None
            assert norm.running_mean is not None
            scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
            bias = (bias - norm.running_mean.double()) * scale + norm.bias.double()
            weight = weight * scale.view(-1, 1, 1, 1)
        if x == "preprocess.shift" and self.preprocess.order == "BGR":
            weight = weight.flip(1)
        names = [self.weight(f"{name}.weight", array(weight)), self.weight(f"{name}.bias", array(bias))]
        sides = {"kernel_shape": list(module.kernel_size), "strides": list(module.stride), "group": module.groups}
        return self.add("Conv", name, [x, *names], **sides, pads=[int(pad) for pad in module.padding] * 2)

    def binary(self, kind: str, node: fx.Node, name: str) -> str:
        return self.add(kind, name, [self.of(node, 0), self.of(node, 1)])

    def pooled(self, node: fx.Node, name: str) -> str:
        """mean over height and width; engines know it best as a pooling."""
        assert node.args[1] == (2, 3)
        value = self.add("GlobalAveragePool", name, [self.of(node, 0)])
        return value if node.kwargs.get("keepdim") else self.add("Flatten", f"{name}.flatten", [value])

    def strided(self, node: fx.Node, name: str) -> str:
        """Every step-th row and column, of option A."""
        index: Any = node.args[1]
        steps = [part.step or 1 for part in index]
        assert steps[:2] == [1, 1]
        return self.add("MaxPool", name, [self.of(node, 0)], kernel_shape=[1, 1], strides=steps[2:])

    def padded(self, node: fx.Node, name: str) -> str:
        """Zero channels before and after, of option A."""
        sides: Any = node.args[1]
        before, after = sides[4:]
        pads = self.weight(f"{name}.pads", np.array([0, before, 0, 0, 0, after, 0, 0], dtype=np.int64))
        return self.add("Pad", name, [self.of(node, 0), pads])


NAMES = {"iadd": "add", "mean": "pool", "getitem": "step"}  # of functions without a module, in words
NORM = ("weight", "bias", "running_mean", "running_var")


def array(tensor: torch.Tensor | None) -> Array:
    assert tensor is not None
    return tensor.detach().float().numpy()
