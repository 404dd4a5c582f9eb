"""Archives of torch.export: the network as torch's own graph, which every program that has torch can load and compile.

Nothing of an archive is executed here. `torch.export.load` does execute what it finds; in torch 2.13
(torch/export/pt2_archive/_package.py, torch/_export/serde/serialize.py):

  weights and constants whose config says use_pickle    torch.load(weights_only=False)
  custom and opaque objects among the constants         pickle
  sample inputs, and the .pt files of older archives    torch.load(weights_only=True), and False where that fails
  data/aotinductor                                      a compiled library
  symbolic sizes in models/model.json                   sympy.sympify, which is eval
  the graph in models/model.json                        becomes Python source, which is compiled

The last two are plain JSON, so that no look at the pickled members tells a good archive from a bad one. Therefore the
graph is read here, as data: each node must be one of OPERATIONS, its arguments tensors of the graph or plain numbers;
names are keys of a dictionary and no more, and sizes of tensors are not read, as the operations find them themselves.
Of the members, only those that `write` makes may be there; weights are raw float32; there are no constants and no
sample inputs. Whatever else is found is refused. This also starts faster (`torch.export.load` takes a second or two).
"""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnetkit.atomic import write_bytes
from resnetkit.data.transforms import Preprocess
from resnetkit.engines.engine import Engine, Logits, Pixels
from resnetkit.engines.files import PT2_MEMBER, Input, Source, members_digest, metadata
from resnetkit.engines.folding import folded
from resnetkit.errors import UserError
from resnetkit.sealing import PLACE
from resnetkit.weights import ModelFile, place

ROOT = "archive"  # the folder of all members, as torch names it in what it writes to memory
ABOUT = f"{ROOT}/extra/{PT2_MEMBER}"  # where torch.export.load(…, extra_files={"resnetkit.json": ""}) finds it too
WEIGHTS = f"{ROOT}/data/weights/"
CONFIGS = {
    "weights": f"{WEIGHTS}model_weights_config.json",
    "constants": f"{ROOT}/data/constants/model_constants_config.json",
}
GRAPH, SAMPLES, BYTE_ORDER = f"{ROOT}/models/model.json", f"{ROOT}/data/sample_inputs/model.pt", f"{ROOT}/byteorder"
OTHERS = [f"{ROOT}/{name}" for name in ("archive_format", "archive_version", ".data/version", ".data/serialization_id")]
MEMBERS = {ABOUT, GRAPH, SAMPLES, BYTE_ORDER, *CONFIGS.values(), *OTHERS}
WEIGHT = re.compile(re.escape(WEIGHTS) + r"weight_\d+")
FLOAT, STRIDED = 7, 7  # schema.ScalarType.FLOAT and schema.Layout.Strided of torch/_export/serde

aten = torch.ops.aten
# What our networks are made of. Each computes a tensor from its arguments, and does nothing else.
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    f"torch.ops.{operation}": operation
    for operation in (
        aten.add.Tensor,
        aten.add_.Tensor,
        aten.addcmul.default,
        aten.avg_pool2d.default,
        aten.batch_norm.default,
        aten.conv2d.default,
        aten.flip.default,
        aten.linear.default,
        aten.max_pool2d.default,
        aten.mean.dim,
        aten.mul.Tensor,
        aten.pad.default,
        aten.permute.default,
        aten.relu.default,
        aten.relu_.default,
        aten.sigmoid.default,
        aten.slice.Tensor,
    )
}
PLAIN = ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_none")
BROKEN = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class Normalised(nn.Module):
    """A network that takes pictures as `Preprocess.fit` gives them; `Preprocess.normalise` is inside."""

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network, self.turned = network, preprocess.order == "BGR"
        scale, shift = (torch.from_numpy(values) for values in preprocess.affine)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift.contiguous(memory_format=torch.channels_last))

    def forward(self, pictures: Tensor) -> Tensor:
        if self.turned:
            pictures = pictures.flip(3)
        x = torch.addcmul(self.get_buffer("shift"), pictures.permute(0, 3, 1, 2), self.get_buffer("scale"))
        logits: Tensor = self.network(x)
        return logits


class Plain(nn.Module):
    """A network that takes normalised pictures, with its parameters called as in `Normalised`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input: Tensor) -> Tensor:
        logits: Tensor = self.network(input)
        return logits


def write(model: ModelFile, target: Path, input: Input, export: dict[str, Any]) -> None:
    """Write the archive of a model. Raises OSError when the place cannot be written; an older file there then stays.

    input    what it takes: "uint8" pictures, normalised inside, or "float", normalised (N, C, size, size); N may change
    export   the table of that name in its metadata
    """
    assert export["input"] == input, "the metadata say what the graph takes"
    archive, text = archived(model, input), metadata(model.about, export)
    digest = members_digest(io.BytesIO(with_member(archive, text)))  # takes no notice of the digest's own place
    write_bytes(target, with_member(archive, text.replace(PLACE, digest)))


def archived(model: ModelFile, input: Input) -> bytes:
    """What torch.export makes of the network, without our metadata."""
    network: nn.Module = place(folded(model.network), torch.device("cpu")).requires_grad_(False)
    size, channels = model.preprocess.size, model.preprocess.channels
    if input == "uint8":
        network, example = (
            Normalised(network, model.preprocess),
            torch.zeros(2, size, size, channels, dtype=torch.uint8),
        )
    else:
        network, example = Plain(network), torch.zeros(2, channels, size, size)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(network.eval(), (example,), dynamic_shapes=({0: batch},))
    program._example_inputs = None  # pickled, they would be the one member that is no plain data
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # channels_last weights are not contiguous, so torch takes them for parts of a larger tensor; each has its own.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group", category=UserWarning)
        torch.export.save(program, buffer)
    return buffer.getvalue()


def with_member(archive: bytes, text: str) -> bytes:
    """The archive with our metadata in it, where torch keeps what is not its own."""
    buffer = io.BytesIO(archive)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(zipfile.ZipInfo(ABOUT), text)
    return buffer.getvalue()


def load(source: Source, threads: int, device: str = "cpu") -> Engine:
    """The engine of an archive, on a device. `threads` are those of the whole process.

    Raises UserError for an archive that is damaged, or holds more than data; nothing of it has then been executed.
    """
    if device == "cpu":
        torch.set_num_threads(threads)
    preprocess, path = source.about.preprocess, source.path
    shape = (preprocess.size, preprocess.size, preprocess.channels)
    try:
        program = read_program(path).to(device)
        check_shapes(program, source, device)
    except Foreign as error:
        raise UserError(f"{path}: holds {error}, which resnetkit does not run; export it again") from None
    except (*BROKEN, zipfile.BadZipFile) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: no archive of torch.export that can be used ({why}); export it again") from None

    def run(pictures: Pixels) -> Logits:
        assert pictures.shape[1:] == shape, f"pictures {pictures.shape[1:]} for a network of {shape}"
        with torch.inference_mode():
            x = torch.from_numpy(pictures).to(device)
            if source.input == "float":
                x = preprocess.normalise(x)
            logits: Logits = program(x).float().cpu().numpy()
        return logits

    return run


class Foreign(ValueError):  # noqa: N818 - it names what was found
    """What an archive holds that `write` does not put there."""


class Name(str):
    """Of a tensor in the graph."""

    __slots__ = ()


@dataclass(frozen=True)
class Step:
    """A node of the graph: `output` is what the operation makes of its arguments; `last` are not read afterwards."""

    operation: Callable[..., Tensor]
    arguments: dict[str, Any]
    output: Name
    last: tuple[Name, ...]


@dataclass(frozen=True)
class Program:
    """A graph as data: `steps` one after the other turn the tensor `input` into `output`."""

    weights: dict[Name, Tensor]
    steps: tuple[Step, ...]
    input: Name
    output: Name

    def __call__(self, x: Tensor) -> Tensor:
        values = {**self.weights, self.input: x}
        for step in self.steps:
            arguments = {key: values[part] if isinstance(part, Name) else part for key, part in step.arguments.items()}
            values[step.output] = step.operation(**arguments)
            for name in step.last:
                del values[name]
        return values[self.output]

    def to(self, device: str) -> Program:
        weights = {name: weight.to(device) for name, weight in self.weights.items()}
        return Program(weights, self.steps, self.input, self.output)


def read_program(path: Path) -> Program:
    """The graph and the weights of an archive. Raises Foreign, BadZipFile and what broken data raise."""
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist()]
        strange = [name for name in names if name not in MEMBERS and not WEIGHT.fullmatch(name)]
        if strange or len(set(names)) < len(names):
            raise Foreign(f"the member {(strange or names)[0]!a}")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise Foreign("compressed members")  # torch writes none; a small file could be a large one
        configs = {key: json.loads(archive.read(name))["config"] for key, name in CONFIGS.items()}
        if configs["constants"] or archive.getinfo(SAMPLES).file_size:
            raise Foreign("Python objects")
        if archive.read(BYTE_ORDER).decode() != sys.byteorder:
            raise Foreign("weights in another byte order")
        weights = {name: read_weight(archive, meta) for name, meta in configs["weights"].items()}
        return read_graph(json.loads(archive.read(GRAPH))["graph_module"], weights)


def read_weight(archive: zipfile.ZipFile, meta: dict[str, Any]) -> Tensor:
    """One row of the config of weights: raw numbers, and how they lie in memory."""
    if meta["use_pickle"] is not False:
        raise Foreign("Python objects")
    layout = meta["tensor_meta"]
    if layout["dtype"] != FLOAT or layout["layout"] != STRIDED:
        raise Foreign("weights that are no float32")
    numbers = torch.frombuffer(bytearray(archive.read(WEIGHTS + meta["path_name"])), dtype=torch.float32)
    sizes, strides = ([part["as_int"] for part in layout[key]] for key in ("sizes", "strides"))
    return numbers.as_strided(sizes, strides, layout["storage_offset"]["as_int"])  # raises beyond the numbers' end


def read_graph(module: dict[str, Any], weights: dict[str, Tensor]) -> Program:
    """models/model.json as steps; of torch/_export/serde/schema.py it takes what our networks need."""
    tensors: dict[Name, Tensor] = {}
    inputs: list[Name] = []
    for spec in module["signature"]["input_specs"]:
        kind, value = only(spec)
        if kind == "user_input":
            inputs.append(tensor_name(value["arg"]))
        elif kind in ("parameter", "buffer"):
            tensors[Name(value["arg"]["name"])] = weights[value[f"{kind}_name"]]
        else:
            raise Foreign(f"an input of the kind {kind!a}")
    (input,), (output,) = inputs, map(tensor_name, module["graph"]["outputs"])
    steps: list[Step] = []
    read = {output}
    for node in reversed(module["graph"]["nodes"]):
        if node["target"] not in OPERATIONS:
            raise Foreign(f"the operation {node['target']!a}")
        arguments = {argument["name"]: argument_value(argument["arg"]) for argument in node["inputs"]}
        used = {value for value in arguments.values() if isinstance(value, Name)}
        (given,) = map(tensor_name, node["outputs"])
        steps.append(Step(OPERATIONS[node["target"]], arguments, given, last=tuple(used - read)))
        read |= used
    return Program(tensors, tuple(reversed(steps)), input, output)


def only(union: dict[str, Any]) -> tuple[str, Any]:
    """Kind and value of what stands in the file as {kind: value}. Raises ValueError for anything else."""
    ((kind, value),) = union.items()
    return kind, value


def tensor_name(union: dict[str, Any]) -> Name:
    kind, value = only(union)
    if kind != "as_tensor":
        raise Foreign(f"a result of the kind {kind!a}")
    return Name(value["name"])


def argument_value(union: dict[str, Any]) -> Any:
    """A plain value, or the name of a tensor."""
    kind, value = only(union)
    if kind == "as_tensor":
        return Name(value["name"])
    if kind not in PLAIN:
        raise Foreign(f"an argument of the kind {kind!a}")
    return None if kind == "as_none" else value


def check_shapes(program: Program, source: Source, device: str) -> None:
    """Raise where the graph does not turn a picture into as many logits as there are classes.

    A black picture goes through it: shapes alone, on the device "meta", take seconds of imports.
    """
    size, channels = source.about.preprocess.size, source.about.preprocess.channels
    with torch.inference_mode():
        if source.input == "uint8":
            logits = program(torch.zeros(1, size, size, channels, dtype=torch.uint8, device=device))
        else:
            logits = program(torch.zeros(1, channels, size, size, device=device))
    if logits.shape != (1, len(source.about.classes)):
        raise ValueError(f"a picture gives {tuple(logits.shape)}, for {len(source.about.classes)} classes")
