"""Model files and other people's weights: what comes back, what does not fit, and code that is not run."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from resnetkit import tensorfile
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import ResNet, architecture
from resnetkit.peers.pickles import read_state_dict
from resnetkit.peers.sources import import_weights
from resnetkit.weights import ModelFile, check_fit, dump_model, open_model, place, save_model

ARCH = architecture("resnet8-cifar", classes=2)
PREPROCESS = Preprocess(32, "shorter", 36, "bicubic", 3, "RGB", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), exif=False)


def network(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(ARCH).eval()


def model(seed: int = 0) -> ModelFile:
    return ModelFile(network(seed), ("cat", "chien 犬"), PREPROCESS, {"top1": 0.5}, {"device": "cpu"})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_model_comes_back_from_its_file_and_from_its_run(tmp_path: Path) -> None:
    save_model(model(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        opened = open_model(path)
        assert same(opened.network.state_dict(), network().state_dict())
        assert (opened.network.arch, opened.network.training) == (ARCH, False)
        assert (opened.classes, opened.preprocess) == (("cat", "chien 犬"), PREPROCESS)
        assert (opened.metrics, opened.provenance) == ({"top1": 0.5}, {"device": "cpu"})


def test_equal_models_are_equal_bytes() -> None:
    assert dump_model(model(1)) == dump_model(model(1))
    assert dump_model(model(1)) != dump_model(model(2))
    last = replace(model(1), network=place(network(1), torch.device("cpu"), channels_last=True))
    assert dump_model(model(1)) == dump_model(last)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    good = dump_model(model())
    (tmp_path / "run").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.json").write_text("{}")
    torch.save(network().state_dict(), tmp_path / "w.pth")
    save_file(network().state_dict(), tmp_path / "alone.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(good[:-9])
    tensors = network().state_dict()
    (tmp_path / "step.safetensors").write_bytes(tensorfile.dump(tensors, {"kind": "checkpoint"}))
    (tmp_path / "new.safetensors").write_bytes(tensorfile.dump(tensors, {"kind": "model", "format": 2}))
    for name, message in {
        "nowhere": "no such model file or run folder",
        "run": "holds no model.safetensors",
        "begun": "finish it with: resnet resume",
        "w.pth": "bring them in with: resnet import",
        "alone.safetensors": "holds weights alone",
        "step.safetensors": "holds a checkpoint",
        "new.safetensors": "format 2; this version of resnetkit reads 1",
        "cut.safetensors": "damaged",
    }.items():
        with pytest.raises(UserError, match=message) as failure:
            open_model(tmp_path / name)
        assert str(failure.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    "wrapping", ["plain", "state_dict", "model", "module.", "linear", "safetensors", "no counters"]
)
def test_wrappings_of_others_are_undone(wrapping: str, tmp_path: Path) -> None:
    expected = network().state_dict()
    tensors: dict[str, Any] = dict(expected)
    if wrapping == "module.":
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    if wrapping == "linear":
        tensors = {name.replace("fc.", "linear."): tensor for name, tensor in tensors.items()}
    if wrapping == "no counters":  # torch before 0.4.1
        tensors = {name: tensor for name, tensor in tensors.items() if "num_batches" not in name}
    source = tmp_path / f"weights.{'safetensors' if wrapping == 'safetensors' else 'th'}"
    if wrapping == "safetensors":
        save_file(tensors, source)
    else:
        torch.save({wrapping: tensors, "epoch": 3} if wrapping in ("state_dict", "model") else tensors, source)
    out = tmp_path / "m.safetensors"
    import_weights(source, arch=ARCH, classes=("cat", "dog"), preprocess=PREPROCESS, out=out)
    opened = open_model(out)
    assert same(opened.network.state_dict(), expected)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(opened.network(x), network()(x))


class Trap:
    """Runs a command when it is unpickled without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    mark, source = tmp_path / "ran", tmp_path / "trap.pth"
    torch.save({"state_dict": {"conv1.weight": Trap(mark)}}, source)
    with pytest.raises(UserError, match=r"trap\.pth: refused: opening it would run code \(posix\.mkdir\)"):
        read_state_dict(source)
    assert not mark.exists()
    torch.load(source, weights_only=False)  # the trap does work
    assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut"])
def test_what_torch_did_not_save_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth: not a file of torch\.save, or damaged"):
        read_state_dict(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(2), {0: torch.zeros(2)}])
def test_what_is_no_state_dict_is_named(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        read_state_dict(tmp_path / "w.pth")


def saved(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(3.0)}}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def test_fp32_is_fp32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not TF32, which torch takes for convolutions by default; without moving anything, as there may be no GPU."""
    network = ResNet(architecture("resnet8-cifar"))
    monkeypatch.setattr(ResNet, "to", lambda self, *_, **__: self)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    place(network, torch.device("cpu"))
    assert torch.backends.cudnn.allow_tf32
    place(network, torch.device("cuda"))
    assert not torch.backends.cudnn.allow_tf32


intact = st.sampled_from([saved(zipped=True), saved(zipped=False)])
damaged = st.one_of(
    st.binary(max_size=40).map(lambda tail: b"\x80\x02" + tail),  # begins as a pickle does
    st.builds(lambda data, share: data[: int(share * len(data))], intact, st.floats(0, 1)),
    st.builds(
        lambda data, share, byte: data[: int(share * len(data))] + bytes([byte]) + data[int(share * len(data)) + 1 :],
        intact,
        st.floats(0, 1),
        st.integers(0, 255),
    ),
)


@given(damaged)
def test_damage_ends_in_a_sentence_or_in_tensors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """A pickle holds no digest, so a changed value may pass, but nothing ends in a traceback."""
    path = tmp_path_factory.mktemp("damaged") / "w.pth"
    path.write_bytes(data)
    said, found = "", {}
    try:
        found = read_state_dict(path)
    except UserError as error:
        said = str(error)
    assert said == "" or (said.startswith(f"{path}: ") and "\n" not in said)
    assert all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items())


def fits(tensors: dict[str, Tensor]) -> bool:
    try:
        check_fit(network(), tensors, "w.pth")
    except UserError:
        return False
    return True


def test_what_fits_is_what_torch_loads_strictly() -> None:
    """Each tensor in turn left out, in another shape, and under another name."""
    whole = network().state_dict()
    for name, tensor in whole.items():
        rest = {key: value for key, value in whole.items() if key != name}
        for tensors in (rest, {**whole, name: torch.ones(2, *tensor.shape, 2)}, {**rest, f"{name}_": tensor}):
            try:
                network().load_state_dict(tensors, strict=True)
            except RuntimeError:
                assert not fits(tensors), name
            else:
                assert fits(tensors), name
    assert fits(whole)


def test_every_mismatch_is_listed(tmp_path: Path) -> None:
    tensors = dict(network().state_dict())
    del tensors["conv1.weight"]
    tensors["extra"] = torch.zeros(3)
    tensors["fc.weight"] = torch.zeros(5, 64)
    torch.save(tensors, tmp_path / "w.pth")
    out = tmp_path / "m.safetensors"
    with pytest.raises(UserError) as failure:
        import_weights(tmp_path / "w.pth", arch=ARCH, classes=("a", "b"), preprocess=PREPROCESS, out=out)
    assert str(failure.value).endswith(
        "does not fit resnet8-cifar: missing conv1.weight (16, 3, 3, 3); unexpected extra (3,); "
        "fc.weight is (5, 64), not (2, 64)"
    )
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"and 27 more$"):  # 37 tensors without the counters, ten of them named
        import_weights(tmp_path / "w.pth", arch=ARCH, classes=("a", "b"), preprocess=PREPROCESS, out=out)
    assert not out.exists()


def test_published_weights_fit(tmp_path: Path) -> None:
    """269,722 parameters: ResNet-20 with option A, Sec. 4.2 of the paper."""
    source = Path(__file__).parents[2] / "shared" / "weights" / "cifar10-resnet20.th"
    if not source.exists():
        pytest.skip("needs ../shared/weights, published weights that are not part of the repository")
    arch = architecture("resnet20-cifar")
    names = tuple("abcdefghij")
    file = import_weights(source, arch=arch, classes=names, preprocess=PREPROCESS, out=tmp_path / "m.safetensors")
    assert sum(p.numel() for p in file.network.parameters()) == 269_722
