"""Archives of torch.export: the answers that come back, what is noticed, and code that is not run."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from resnetkit.data.transforms import Preprocess
from resnetkit.engines import files, pt2
from resnetkit.engines.engine import Logits, Pixels
from resnetkit.errors import UserError
from resnetkit.model import ResNet, architecture
from resnetkit.sealing import PLACE
from resnetkit.weights import ModelFile

Input = Literal["uint8", "float"]
Forgery = tuple[dict[str, bytes], str]  # members that are added or changed, and words of the refusal
CLASSES = ("cat", "chien 犬", "cow")
WEIGHTS, CONSTANTS = pt2.CONFIGS["weights"], pt2.CONFIGS["constants"]


def preprocess(
    size: int, order: str = "RGB", channels: int = 3, mean: tuple[float, ...] = (0.5, 0.4, 0.3)
) -> Preprocess:
    deviations = (0.2, 0.3, 0.25)[:channels]
    return Preprocess(size, "shorter", size + 8, "bilinear", channels, order, mean, deviations, exif=True)  # type: ignore[arg-type]


def model(name: str, how: Preprocess, **choices: Any) -> ModelFile:
    """A network whose normalisations have seen a batch, so that folding them away changes something."""
    torch.manual_seed(0)
    network = ResNet(architecture(name, classes=len(CLASSES), channels=how.channels, **choices))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    network.train()(how.normalise(torch.from_numpy(pictures(16, how))))
    return ModelFile(network.eval(), CLASSES, how, {"top1": 0.5}, {"device": "cpu"}, {"temperature": 1.5})


def pictures(count: int, how: Preprocess) -> Pixels:
    return np.random.default_rng(count).integers(0, 256, (count, how.size, how.size, how.channels), dtype=np.uint8)


def answers(of: ModelFile, asked: Pixels) -> Logits:
    with torch.inference_mode():
        logits: Logits = of.network(of.preprocess.normalise(torch.from_numpy(asked))).numpy()
    return logits


def written(of: ModelFile, path: Path, input: Input) -> files.Source:
    export = {"input": input, "precision": "fp32"}
    pt2.write(of, path, input, export)
    source = files.read(path)
    assert source.about.to_meta() == json.loads(json.dumps(of.about.to_meta()))  # tuples come back as lists
    assert (source.about.preprocess, source.input, source.precision) == (of.preprocess, input, "fp32")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return source


@pytest.fixture(scope="module")
def small() -> ModelFile:
    return model("resnet8-cifar", preprocess(16))


@pytest.fixture(scope="module")
def archive(small: ModelFile, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("pt2") / "m.pt2"
    written(small, path, "uint8")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "size", "input", "order"),
    [
        ("resnet18", 64, "uint8", "RGB"),
        ("resnet18", 64, "float", "BGR"),
        ("resnet20-cifar", 32, "uint8", "RGB"),
        ("resnet20-cifar", 32, "uint8", "BGR"),
        ("resnet20-cifar", 32, "float", "RGB"),
        ("resnet20-cifar", 32, "float", "BGR"),
        ("resnet50d", 64, "uint8", "BGR"),
        ("resnet50d", 64, "float", "RGB"),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_an_archive_answers_as_its_model(tmp_path: Path, name: str, size: int, input: Input, order: str) -> None:
    wanted = model(name, preprocess(size, order))
    run = pt2.load(written(wanted, tmp_path / "m.pt2", input), threads=1)
    for batch in (1, 2, 5):
        asked = pictures(batch, wanted.preprocess)
        logits = run(asked)
        assert logits.dtype == np.float32
        assert logits == pytest.approx(answers(wanted, asked), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("seresnextv2_26d_32x4d", {"pool": "ceil"}),
        ("resnet8-cifar", {"norm": "none", "init": "small"}),
        ("plain8-cifar", {"channels": 1}),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_every_part_of_a_network_has_its_operation(tmp_path: Path, name: str, choices: dict[str, Any]) -> None:
    channels = choices.pop("channels", 3)
    per_pixel = tuple(np.linspace(0, 1, channels * 33**2).tolist())  # the paper's mean, one number per value
    wanted = model(name, preprocess(33, channels=channels, mean=per_pixel), **choices)
    asked = pictures(3, wanted.preprocess)
    run = pt2.load(written(wanted, tmp_path / "m.pt2", "uint8"), threads=1)
    assert run(asked) == pytest.approx(answers(wanted, asked), abs=1e-4)


def test_torch_loads_it_too(small: ModelFile, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(archive)
    extra = {files.PT2_MEMBER: ""}
    run = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    assert json.loads(extra[files.PT2_MEMBER])["classes"] == list(CLASSES)
    for batch in (1, 5):
        asked = pictures(batch, small.preprocess)
        assert run(torch.from_numpy(asked)).numpy() == pytest.approx(answers(small, asked), abs=1e-4)


def test_an_archive_holds_data_and_nothing_of_this_machine(archive: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    assert contents[pt2.SAMPLES] == b""
    assert str(Path.home()).encode() not in archive
    assert b"stack_trace" not in contents[pt2.GRAPH]


def test_the_engine_wants_the_size_it_was_exported_for(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(archive)
    run = pt2.load(files.read(tmp_path / "m.pt2"), torch.get_num_threads())
    with pytest.raises(AssertionError, match="for a network of"):
        run(np.zeros((1, 17, 16, 3), np.uint8))


def test_nothing_half_written_stays(small: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        pt2.write(small, tmp_path / "m.pt2", "uint8", {"input": "uint8", "precision": "fp32"})
    assert list(tmp_path.iterdir()) == []


def test_a_changed_byte_is_noticed(archive: bytes, tmp_path: Path) -> None:
    """In each member, its first and last byte and one between; in the list of members at the end, their names."""
    draw, path = random.Random(0), tmp_path / "m.pt2"
    places = []
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        for info in file.infolist():
            names = int.from_bytes(archive[info.header_offset + 26 :][:2], "little")
            more = int.from_bytes(archive[info.header_offset + 28 :][:2], "little")
            start, last = info.header_offset + 30 + names + more, info.file_size - 1
            assert archive[start : start + info.file_size] == file.read(info)
            if last >= 0:
                places += [start, start + last, start + draw.randint(0, last)]
            places.append(archive.rindex(info.filename.encode()))
    for place in places:
        path.write_bytes(archive[:place] + bytes([archive[place] ^ 1 << draw.randrange(8)]) + archive[place + 1 :])
        with pytest.raises(UserError) as caught:
            files.read(path)
        assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("cut", [0, 1, 50, 0.5, 0.99, -1])
def test_a_cut_archive_is_one_sentence(archive: bytes, tmp_path: Path, cut: float) -> None:
    kept = int(cut * len(archive)) if isinstance(cut, float) else cut
    (tmp_path / "m.pt2").write_bytes(archive[:kept])
    refused(tmp_path / "m.pt2", "an archive of torch.export is expected")


def test_what_is_not_ours_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_text("no archive\n" * 100)
    refused(path, "an archive of torch.export is expected")
    for method, words in ((zipfile.ZIP_STORED, "not exported by resnetkit"), (zipfile.ZIP_DEFLATED, "compressed")):
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr("a/b.txt", "text" * 100)
        refused(path, words)


def refused(path: Path, words: str) -> None:
    with pytest.raises(UserError) as caught:
        pt2.load(files.read(path), torch.get_num_threads())
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message


def forged(archive: bytes, changes: dict[str, bytes]) -> bytes:
    """The archive with other members, its digest made anew as a forger would."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        members = {name: file.read(name) for name in file.namelist()} | changes
    about = members.pop(pt2.ABOUT).decode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    about = about.replace(json.loads(about)["sha256"], PLACE)
    digest = files.members_digest(io.BytesIO(pt2.with_member(buffer.getvalue(), about)))
    return pt2.with_member(buffer.getvalue(), about.replace(PLACE, digest))


class Payload:
    """Makes a folder when it is unpickled, which is how the test sees that it was."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def member(archive: bytes, name: str) -> Any:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return json.loads(file.read(name))


def with_pickled_weights(archive: bytes, trace: Path) -> Forgery:
    config = member(archive, WEIGHTS)
    row = next(iter(config["config"].values()))
    row["use_pickle"] = True
    changes = {WEIGHTS: json.dumps(config).encode(), pt2.WEIGHTS + row["path_name"]: pickled(Payload(trace))}
    return changes, "holds Python objects, which resnetkit does not run; export it again"


def with_sample_inputs(_: bytes, trace: Path) -> Forgery:
    return {pt2.SAMPLES: pickled(((Payload(trace),), {}))}, "holds Python objects"


def with_an_opaque_constant(_: bytes, trace: Path) -> Forgery:
    folder, row = "archive/data/constants/", {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    config = {"config": {"constant": row | {"tensor_meta": None}}}
    changes = {CONSTANTS: json.dumps(config).encode(), f"{folder}opaque_obj_0": pickle.dumps(Payload(trace))}
    return changes, "holds the member 'archive/data/constants/opaque_obj_0'"


def with_a_constant_in_place_of_a_weight(archive: bytes, trace: Path) -> Forgery:
    changes, _ = with_an_opaque_constant(archive, trace)
    return {CONSTANTS: changes[CONSTANTS]}, "holds Python objects"


def with_weights_of_older_archives(_: bytes, trace: Path) -> Forgery:
    return {"archive/data/weights/model.pt": pickled({"w": Payload(trace)})}, "holds the member"


def with_another_program(archive: bytes, _: Path) -> Forgery:
    """Which torch.export.load would take as well, before the first one or after it."""
    return {"archive/models/other.json": json.dumps(member(archive, pt2.GRAPH)).encode()}, "holds the member"


def with_an_operation_of_python(archive: bytes, trace: Path) -> Forgery:
    module = member(archive, pt2.GRAPH)
    node = module["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.mkdir"
    node["inputs"] = [{"name": "path", "arg": {"as_string": str(trace)}, "kind": 1}]
    return {pt2.GRAPH: json.dumps(module).encode()}, "holds the operation 'torch.os.mkdir', which"


def with_words_for_an_argument(archive: bytes, trace: Path) -> Forgery:
    module = member(archive, pt2.GRAPH)
    module["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_string": str(trace)}
    return {pt2.GRAPH: json.dumps(module).encode()}, "holds an argument of the kind 'as_string'"


FORGERIES = [
    with_pickled_weights,
    with_sample_inputs,
    with_an_opaque_constant,
    with_a_constant_in_place_of_a_weight,
    with_weights_of_older_archives,
    with_another_program,
    with_an_operation_of_python,
    with_words_for_an_argument,
]


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_nothing_of_a_forged_archive_is_run(
    archive: bytes, tmp_path: Path, forge: Callable[[bytes, Path], Forgery]
) -> None:
    changes, words = forge(archive, tmp_path / "trace")
    (tmp_path / "m.pt2").write_bytes(forged(archive, changes))
    refused(tmp_path / "m.pt2", words)
    assert not (tmp_path / "trace").exists()


def test_sizes_that_are_code_are_not_read(small: ModelFile, archive: bytes, tmp_path: Path) -> None:
    """torch.export.load evaluates them as Python; here the operations find the sizes, so the archive works."""
    size, trace = "Symbol('s", tmp_path / "trace"
    text = json.dumps(member(archive, pt2.GRAPH))
    assert size in text
    changed = text.replace(size, f"__import__('os').mkdir('{trace}') or {size}").encode()
    (tmp_path / "m.pt2").write_bytes(forged(archive, {pt2.GRAPH: changed}))
    asked = pictures(2, small.preprocess)
    run = pt2.load(files.read(tmp_path / "m.pt2"), torch.get_num_threads())
    assert run(asked) == pytest.approx(answers(small, asked), abs=1e-4)
    assert not trace.exists()


def broken(archive: bytes, name: str, change: Callable[[Any], object]) -> dict[str, bytes]:
    value = member(archive, name)
    change(value)
    return {name: json.dumps(value).encode()}


def test_a_graph_that_does_not_fit_is_one_sentence(archive: bytes, tmp_path: Path) -> None:
    first = next(iter(member(archive, WEIGHTS)["config"]))
    changes: list[dict[str, bytes]] = [
        {pt2.GRAPH: b"[1]"},
        {pt2.GRAPH: b"\xff"},
        {pt2.GRAPH: b"[" * 100_000},
        {f"{pt2.WEIGHTS}weight_0": b"1234"},
        broken(archive, WEIGHTS, lambda value: value["config"].pop(first)),
        broken(archive, WEIGHTS, lambda value: value["config"][first]["tensor_meta"].update(dtype=1)),
        broken(
            archive, WEIGHTS, lambda value: value["config"][first]["tensor_meta"].update(storage_offset={"as_int": -1})
        ),
        broken(archive, pt2.GRAPH, lambda value: value["graph_module"]["graph"]["nodes"].pop(3)),
        broken(
            archive,
            pt2.GRAPH,
            lambda value: value["graph_module"]["graph"]["outputs"][0]["as_tensor"].update(name="mean"),
        ),
    ]
    for change in changes:
        (tmp_path / "m.pt2").write_bytes(forged(archive, change))
        refused(tmp_path / "m.pt2", "; export it again")
