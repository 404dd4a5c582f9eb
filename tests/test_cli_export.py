"""`resnet export` and `exporting.export`: each engine's line, and arguments that are odd, or wrong without an error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prediction_samples import picture
from resnetkit.engines import files
from resnetkit.engines.engine import version
from resnetkit.errors import UserError
from resnetkit.exporting import SUFFIXES, export
from resnetkit.weights import save_model
from test_engines_parity import COLOUR, make_model

MODEL = make_model("resnet8-cifar", replace(COLOUR, size=16))
Resnet = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    save_model(MODEL, tmp_path / "run" / "model.safetensors")
    return tmp_path / "run"


@pytest.mark.parametrize("to", SUFFIXES)
def test_each_engine_from_a_run_folder(to: str, model: Path, resnet: Resnet, tmp_path: Path) -> None:
    if to != "torch-export" and version(to) is None:
        pytest.skip(f"{to} is not installed")
    out = tmp_path / "out" / f"m{SUFFIXES[to]}"
    out.parent.mkdir()
    code, text, _ = resnet("export", str(model), "--to", to, "--out", str(out), "--input", "float", "--json")
    answer = json.loads(text)
    assert (code, answer["files"][0]) == (0, str(out))
    assert sorted(answer) == ["files", "notes", "proof"]
    assert answer["notes"][0].startswith(f"{answer['proof']['engine']} answers as the model does: ")
    assert sorted(map(str, out.parent.iterdir())) == sorted(answer["files"])
    assert files.read(out).input == "float"
    a = str(picture(tmp_path / "a.png"))
    (ours, theirs) = (json.loads(resnet("predict", path, a, "--json")[1]) for path in (str(model), str(out)))
    assert ours["class"] == theirs["class"]
    assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    code, _, err = resnet("export", str(model), "--to", to, "--out", str(out))
    assert (code, err.count("\n")) == (2, 1)
    assert "exists already; choose another --out, or take it away" in err


def test_the_help_is_there_without_torch() -> None:
    code = "import sys\nimport resnetkit.cli_export\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"torch", "numpy", "onnx"} == set()


@pytest.mark.parametrize(
    ("options", "name"),
    [({"input": "float"}, "input"), ({"pictures": ["a.png"]}, "pictures"), ({"int8": "photos"}, "int8")],
)
def test_what_is_for_engines_is_not_passed_over_for_a_library(
    options: dict[str, Any], name: str, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=f"^{name}: is for engines .onnx, openvino, mnn, torch-export., and to is 'timm'"
    ):
        export(MODEL, "timm", tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_proved_on_or_refused(tmp_path: Path) -> None:
    """A folder without any is not the built-in ones; a path is one, not its letters."""
    (tmp_path / "empty").mkdir()
    for given in ([tmp_path / "empty"], tmp_path / "empty", str(tmp_path / "empty")):
        with pytest.raises(UserError, match="empty: holds no pictures; take another folder, or leave it out"):
            export(MODEL, "torch-export", tmp_path / "m.pt2", pictures=given)
    done = export(MODEL, "torch-export", tmp_path / "m.pt2", pictures=str(picture(tmp_path / "a.png")))
    assert "on 1 pictures (yours)" in done.notes[0]
    again = export(MODEL, "torch-export", tmp_path / "n.pt2", pictures=iter([tmp_path / "a.png"]))
    assert again.notes == done.notes


def test_a_score_that_is_no_number_goes_along(tmp_path: Path) -> None:
    """It is not equal to itself, and still no reason to refuse the file."""
    export(replace(MODEL, metrics={"ece": float("nan")}), "torch-export", tmp_path / "m.pt2")
    assert str(files.read(tmp_path / "m.pt2").about.metrics["ece"]) == "nan"
