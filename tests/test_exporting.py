"""Export is a proof: what is written answers as the model does, and what does not is not written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prediction_samples import picture
from resnetkit import exporting
from resnetkit.engines import files
from resnetkit.engines.engine import version
from resnetkit.errors import UserError
from resnetkit.exporting import SUFFIXES, export
from resnetkit.prediction import predict
from resnetkit.weights import ModelFile, save_model
from test_engines_parity import COLOUR, make_model

MODEL = replace(make_model("resnet8-cifar", replace(COLOUR, size=16)), provenance={"seed": 3})
Resnet = Callable[..., tuple[int, str, str]]


def target_for(to: str, folder: Path) -> Path:
    if to != "torch-export" and version(to) is None:
        pytest.skip(f"{to} is not installed")
    return folder / f"m{SUFFIXES[to]}"


@pytest.mark.parametrize("to", SUFFIXES)
@pytest.mark.parametrize("input", ["uint8", "float"])
def test_a_file_answers_as_the_model_does(input: str, to: str, tmp_path: Path) -> None:
    target = target_for(to, tmp_path)
    done = export(MODEL, to, target, input=input)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(Path(file).name for file in done.files)
    proof = done.to_dict()["proof"]
    assert proof["engine"] == ("torch" if to == "torch-export" else to)
    assert (proof["pictures"], proof["same"], proof["whose"]) == (10, 10, "built in")
    assert 0 <= proof["difference"] < 1e-4 * proof["largest"]
    assert f"logits are at most {proof['difference']:.1e} apart" in done.notes[0]
    source = files.read(target)
    assert source.about.provenance == {"seed": 3}
    given = [picture(tmp_path / f"{i}.png", i) for i in range(3)]
    for ours, exported in zip(predict(MODEL, given, top=7), predict(target, given, top=7), strict=True):
        assert [name for name, _ in ours.top] == [name for name, _ in exported.top]
        np.testing.assert_allclose([p for _, p in ours.top], [p for _, p in exported.top], atol=1e-5)


@pytest.mark.parametrize("to", ["onnx"])
def test_equal_models_give_equal_bytes(to: str, tmp_path: Path) -> None:
    target = target_for(to, tmp_path)
    export(MODEL, to, target)
    again = tmp_path / "again" / target.name
    again.parent.mkdir()
    export(MODEL, to, again)
    assert again.read_bytes() == target.read_bytes()


def test_the_users_own_pictures_prove_it(tmp_path: Path) -> None:
    target = target_for("onnx", tmp_path)
    for i in range(4):
        picture(tmp_path / "photos" / f"{i}.png", i)
    done = export(MODEL, "onnx", target, pictures=[tmp_path / "photos", tmp_path / "photos" / "1.png"])
    assert "on 5 pictures (yours)" in done.notes[0]


@pytest.mark.parametrize("to", ["onnx", "openvino", "mnn"])
def test_a_file_that_answers_another_way_is_not_written(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of the last layer is changed on the way."""
    target = target_for(to, tmp_path)

    def spoilt(model: ModelFile, *given: Any) -> Any:
        other = make_model("resnet8-cifar", model.preprocess)
        other.network.fc.weight.data[2] += 0.05
        return write(replace(other, provenance=model.provenance), *given)

    write = exporting.write
    monkeypatch.setattr(exporting, "write", spoilt)
    with pytest.raises(
        UserError, match=rf"{target.name}: not written: in batches of 1, .* on picture \d+, class 'c': "
    ):
        export(MODEL, to, target)
    assert list(tmp_path.iterdir()) == []


def test_other_metadata_than_the_models_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, write = target_for("onnx", tmp_path), exporting.write
    monkeypatch.setattr(exporting, "write", lambda model, *given: write(replace(model, provenance={}), *given))
    with pytest.raises(UserError, match="its metadata are not the model's; nothing was written"):
        export(MODEL, "onnx", target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "out", "message"),
    [
        ("onxx", "m.onnx", "to='onxx': choose from onnx, openvino, mnn, torch-export, timm, "),
        ("onnx", "m.xml", "m.xml: a file of onnx ends in .onnx"),
        ("onnx", "there.onnx", "there.onnx: exists already; choose another --out, or take it away"),
        ("openvino", "there.xml", "there.bin: exists already"),
        ("onnx", "no/m.onnx", "m.onnx: there is no folder"),
        ("onnx", "/proc/m.onnx", "/proc/m.onnx: cannot be written ("),
    ],
)
def test_where_nothing_can_be_written(to: str, out: str, message: str, tmp_path: Path) -> None:
    for name in ("there.onnx", "there.bin"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError) as failure:
        export(MODEL, to, tmp_path / out)
    assert message in str(failure.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.bin", "there.onnx"]
    assert (tmp_path / "there.onnx").read_text() == "mine"


def test_an_engine_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resnetkit.engines.engine.installation", lambda _: None)
    with pytest.raises(UserError, match=r"openvino is not installed; run: pip install 'resnetkit\[openvino\]'"):
        export(MODEL, "openvino", tmp_path / "m.xml")


@pytest.mark.parametrize("name", ["missing.png", "text.png"])
def test_pictures_that_prove_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match=rf"{name}: .*; take another picture"):
        export(MODEL, "onnx", tmp_path / "m.onnx", pictures=[tmp_path / name])
    assert [path.name for path in tmp_path.iterdir()] == ["text.png"]


# The command


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(MODEL, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_the_command_says_what_it_wrote_and_proved(model: Path, resnet: Resnet, tmp_path: Path) -> None:
    out = target_for("onnx", tmp_path)
    code, text, _ = resnet("export", str(model), "--to", "onnx", "--out", str(out))
    assert code == 0
    assert text.startswith(f"{out}\nonnx answers as the model does: on 10 pictures (built in), in batches of 1, 2, 5, ")
    out.unlink()
    code, text, _ = resnet("export", str(model), "--to", "onnx", "--out", str(out), "--json")
    assert (code, json.loads(text)["files"]) == (0, [str(out)])
    code, text, _ = resnet("predict", str(out), str(picture(tmp_path / "a.png")), "--json")
    assert (code, len(json.loads(text)["top"])) == (0, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--to timm --input uint8", "--input: is for engines (onnx, openvino, mnn, torch-export), and --to is timm"),
        ("--to timm --int8 --calibrate x", "--int8: is for engines"),
        ("--to onnx --int8", "--int8 and --calibrate DATA go together"),
        ("--to onnx --calibrate x", "--int8 and --calibrate DATA go together"),
        ("--to onnx --max-drop 1", "--max-drop goes with both"),
        ("--to onnx --max-drop -1", "-1.0 is not in the range x>=0"),
    ],
)
def test_options_that_do_not_go_together(
    options: str, message: str, model: Path, resnet: Resnet, tmp_path: Path
) -> None:
    code, out, err = resnet("export", str(model), *options.split(), "--out", str(tmp_path / "m.onnx"))
    assert (code, out) == (2, "")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_an_exported_file_is_not_exported_again(tmp_path: Path, resnet: Resnet) -> None:
    out = target_for("onnx", tmp_path)
    export(MODEL, "onnx", out)
    code, _, err = resnet("export", str(out), "--to", "mnn", "--out", str(tmp_path / "m.mnn"))
    assert code == 2
    assert f"{out}: not a model file" in err
