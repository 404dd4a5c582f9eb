"""What each verb of the command line gives to the functions below it, and shows of what they give back."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit import cli, embedding, evaluation, training
from resnetkit.embedding import Embeddings
from resnetkit.evaluation import Result
from resnetkit.events import Evaluating, Event, Finished, Found, Stopped
from resnetkit.model import ResNet, architecture
from resnetkit.protocol import Protocol
from resnetkit.recipe_file import load
from resnetkit.shipped import recipes, shipped
from samples import RESULT


def pretend(monkeypatch: pytest.MonkeyPatch, end: Event | Stopped, name: str = "training") -> list[Any]:
    """Put a scripted training in the place of the real one; the list will hold what it is called with."""
    calls: list[Any] = []

    def events(what: str, **named: Any) -> Iterator[Event]:
        calls.append((what, named))
        yield Found(("cats and dogs",))
        yield Evaluating("val", 3)
        if isinstance(end, Stopped):
            raise end
        yield end

    monkeypatch.setattr(training, name, events)
    return calls


FINISHED = Finished(Path("runs/pets"), RESULT, Path("runs/pets/report.html"))


def test_train_asks_for_what_its_options_say(
    resnet: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = pretend(monkeypatch, FINISHED)
    file = tmp_path / "mine.toml"
    file.write_text('base = "cifar-paper"\n[optim]\nlr = 0.2\n')
    assert resnet("train", "photos")[0] == 0
    assert resnet("train", "photos", "--from", "w.safetensors", "--out", "r")[0] == 0
    options = ["--model", "resnet50", "--epochs", "3", "--set", "optim.lr=0.5", "--set", "run.seed=7"]
    assert resnet("train", "photos", "--recipe", str(file), *options)[0] == 0
    nothing = {"val": None, "weights": None, "out": None, "track": (), "exclude": ()}
    assert calls[0] == ("photos", {**nothing, "recipe": shipped("small")})
    assert calls[1] == ("photos", {**nothing, "recipe": shipped("finetune"), "weights": "w.safetensors", "out": "r"})
    asked = calls[2][1]["recipe"]
    assert (asked.name, asked.model.arch, asked.optim.lr, asked.run.seed) == ("cifar-paper", "resnet50", 0.5, 7)
    assert (asked.schedule.epochs, asked.schedule.steps) == (3, 0), "--epochs goes before the recipe's length in steps"


def test_train_says_what_it_found_and_what_to_do_next(
    resnet: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, FINISHED)
    code, out, err = resnet("train", "photos")
    assert (code, err) == (0, "")
    assert out.startswith("cats and dogs\n")
    assert out.endswith("report: runs/pets/report.html\nnext: resnet predict runs/pets a.jpg\n")


@pytest.mark.parametrize(("command", "function"), [("train", "training"), ("resume", "resuming")])
def test_json_at_the_end_of_a_training(
    command: str, function: str, resnet: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, FINISHED, function)
    code, out, err = resnet(command, "photos", "--json")
    assert code == 0
    value = json.loads(out)
    assert value.keys() == {"run", "report", "result"}
    assert (value["run"], value["result"]["correct"]) == ("runs/pets", 2)
    assert err.startswith("cats and dogs\n")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_says_how_to_go_on(
    signum: int, code: int, resnet: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, Stopped(signum, Path("runs/my pets"), 1234))
    got, _, err = resnet("train", "photos")
    assert (got, err) == (code, "resnet: stopped after step 1,234; go on with: resnet resume 'runs/my pets'\n")


# evaluate, embed


def test_evaluate(resnet: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def evaluate(*arguments: Any, **named: Any) -> Result:
        calls.append((arguments, named))
        return RESULT

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    code, out, _ = resnet("evaluate", "m", "photos", "--split", "val", "--bad", "skip", "--json")
    assert code == 0
    value = json.loads(out)
    assert {"n", "correct", "top1", "top1_interval", "top5", "per_class", "protocol", "bad"} <= value.keys()
    assert Result.from_dict(value) == RESULT
    assert resnet("evaluate", "m")[:2][1].startswith("top-1 66.67 % (2 of 3; 95 % interval 20.00 to 90.00)\n")
    device = cli.device()
    usual = {"device": device, "protocol": Protocol(), "ensemble": (), "labels": None, "exclude": ()}
    assert [named.pop("progress") is not None for _, named in calls] == [True, True]
    assert calls[0] == (("m", "photos"), {"split": "val", "bad": "skip", **usual})
    assert calls[1] == (("m", None), {"split": None, "bad": "stop", **usual})


def test_embed_goes_on_after_a_bad_picture(
    resnet: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[Any] = []
    found = Embeddings(("a.png", "c.png"), np.ones((2, 1000), np.float32), {"b\udcff.png": "cut short"})

    def embed(*arguments: Any, **named: Any) -> Embeddings:
        calls.append((arguments, named))
        return found

    monkeypatch.setattr(embedding, "embed", embed)
    monkeypatch.chdir(tmp_path)
    code, out, err = resnet("embed", "m", "x", "y", "--out", "v.npy")
    assert (code, out) == (1, "v.npy, v.csv: 2 vectors of 1,000 numbers\n")
    assert err == "resnet: b\\xff.png: left out: cut short\n"
    assert calls == [(("m", ("x", "y")), {"device": cli.device()})]
    np.testing.assert_array_equal(np.load("v.npy"), found.vectors)
    assert Path("v.csv").read_text() == "path\na.png\nc.png\n"
    code, out, err = resnet("embed", "m", "x", "--out", "v.npy")
    assert (code, out, err) == (2, "", "resnet: v.npy: exists already; choose another name\n")
    assert len(calls) == 1, "refused before the work, not after it"
    code, out, _ = resnet("embed", "m", "x", "--out", "w.npy", "--json")
    assert (code, out.isascii()) == (1, True)
    assert json.loads(out) == {"files": ["w.npy", "w.csv"], "pictures": 2, "dimensions": 1000, "bad": found.bad}
    found.bad.clear()
    assert resnet("embed", "m", "x", "--out", "good.npy")[0] == 0


def test_embed_without_a_picture_that_can_be_read(
    resnet: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Embeddings((), np.ones((0, 64), np.float32), {"b.png": "cut short"})
    monkeypatch.setattr(embedding, "embed", lambda *_, **__: found)
    code, out, err = resnet("embed", "m", "b.png", "--out", str(tmp_path / "v.npy"))
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "resnet: b.png: left out: cut short"
    assert "v.npy: not written, as there is no picture that could be read" in err.splitlines()[1]
    assert list(tmp_path.iterdir()) == []


# model, recipe, import


def test_model_json(resnet: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = resnet("model", "resnet152", "--json")
    value = json.loads(out)
    assert code == 0
    assert (value["layers"], value["parameters"]) == (152, 60_192_808)
    assert [stage["blocks"] for stage in value["stages"]] == [0, 3, 8, 36, 3, 0]
    assert sum(stage["multiply_adds"] for stage in value["stages"]) == value["multiply_adds"]
    small = json.loads(resnet("model", "resnet20-cifar", "--json")[1])
    assert (small["input"], small["architecture"]["classes"]) == ([3, 32, 32], 10)
    options = ["--classes", "7", "--channels", "1", "--size", "64", "--shortcut", "C", "--stride", "1x1"]
    other = json.loads(resnet("model", "resnet50", *options, "--stem-stride", "2", "--json")[1])
    arch = other["architecture"]
    assert other["input"] == [1, 64, 64]
    assert (arch["classes"], arch["shortcut"], arch["stride"], arch["stem_stride"]) == (7, "C", "1x1", 2)


def test_recipe_list_and_show(resnet: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = resnet("recipe", "list")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == list(recipes())
    listed = json.loads(resnet("recipe", "list", "--json")[1])["recipes"]
    assert [entry["name"] for entry in listed] == list(recipes())
    value = json.loads(resnet("recipe", "show", "finetune", "--json")[1])
    assert (value["name"], value["recipe"]["data"]["normalise"]) == ("finetune", "weights")


@pytest.mark.parametrize("name", list(recipes()))
def test_a_copied_recipe_is_the_shipped_one(
    name: str, resnet: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    assert resnet("recipe", "copy", name, str(file))[0] == 0
    assert load(file) == shipped(name)
    assert file.read_text() == resnet("recipe", "show", name)[1]
    code, out, _ = resnet("recipe", "check", str(file))
    assert (code, out) == (0, f"{file}: no mistakes\n")
    code, _, err = resnet("recipe", "copy", name, str(file))
    assert (code, err) == (2, f"resnet: {file}: exists already; choose another name\n")


def test_recipe_check(resnet: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "digits"\n[optim]\nlr = 0.2\n[model]\narch = "resnet32-cifar"\n')
    code, out, _ = resnet("recipe", "check", str(file))
    changed = "  model.arch = resnet32-cifar, in digits resnet20-cifar\n  optim.lr = 0.2, in digits 0.1\n"
    assert (code, out) == (0, f"{file}: no mistakes\n{changed}")
    file.write_text('[model]\narch = "resnet33"\n')
    code, _, err = resnet("recipe", "check", str(file))
    assert code == 2
    assert "architecture 'resnet33'" in err
    file.write_text("[optim]\nlr = fast\n")
    code, _, err = resnet("recipe", "check", str(file))
    assert code == 2
    assert f"{file}, line 2" in err


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Somebody's weights of a small network, as torch.save writes them."""
    path = tmp_path / "weights.th"
    torch.save({"state_dict": ResNet(architecture("resnet8-cifar", classes=2)).state_dict()}, path)
    return path


def importing(weights: Path, out: Path, **changes: str) -> list[str]:
    options = {"arch": "resnet8-cifar", "classes": "cat,dog", "size": "28", "crop": "1", "filter": "bilinear"}
    options |= {"mean": "0.5,0.5,0.5", "std": "0.2,0.2,0.2"}
    words = [word for key, value in (options | changes).items() if value for word in (f"--{key}", value)]
    return ["import", str(weights), *words, "--out", str(out)]


def test_import_makes_a_model_file(resnet: Callable[..., tuple[int, str, str]], weights: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "m.safetensors", tmp_path / "classes.txt"
    names.write_text("cat\n\nhot dog\n")
    code, text, _ = resnet(*importing(weights, out, classes=str(names), crop="0.875", filter="bicubic"), "--exif")
    assert code == 0
    assert text.endswith(f"next: resnet evaluate {out} DATA\n")
    value = json.loads(resnet("model", str(out), "--json")[1])
    assert (value["classes"], value["input"]) == (["cat", "hot dog"], [3, 28, 28])
    assert value["preprocess"]["resize_to"] == 32
    assert (value["preprocess"]["filter"], value["preprocess"]["exif"]) == ("bicubic", True)
    assert value["provenance"] == {"imported_from": "weights.th"}
    assert "2 classes: cat, hot dog\n" in resnet("model", str(out))[1]
    code, _, err = resnet("model", str(out), "--stem-stride", "2")
    assert (code, err.split(": ")[1]) == (2, "--stem-stride")
    code, _, err = resnet(*importing(weights, out))
    assert (code, err) == (2, f"resnet: {out}: exists already; choose another --out\n")
    again = json.loads(resnet(*importing(weights, tmp_path / "n.safetensors"), "--json")[1])
    assert (again["classes"], again["architecture"]["name"]) == (["cat", "dog"], "resnet8-cifar")
    assert (again["preprocess"]["exif"], again["preprocess"]["order"]) == (False, "RGB")
    for name in ("hot dog", "cat"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    value = json.loads(
        resnet(*importing(weights, tmp_path / "o.safetensors", classes=str(tmp_path / "photos")), "--json")[1]
    )
    assert value["classes"] == ["cat", "hot dog"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": "cat,dog,cow"}, "weights.th: has 2 outputs, but 3 classes are named"),
        ({"arch": "", "classes": ""}, "states no architecture, no class names; say it with --arch, --classes"),
        (
            dict.fromkeys(("size", "crop", "filter", "mean", "std"), ""),
            "states no preprocessing; say it with --size, --c",
        ),
        ({"size": "", "std": ""}, "--size, --std: needed too; preprocessing is said in whole or not at all"),
        ({"mean": "0.5"}, "preprocess std: must be a list of 1 numbers"),
        ({"mean": "0.5", "std": "0.2"}, "conv1.weight is (16, 3, 3, 3), not (16, 1, 3, 3)"),
        ({"revision": "main"}, "weights.th: a revision is for repositories of the hub; leave --revision out"),
        ({"classes": "cat,cat"}, "--classes cat,cat: 'cat' stands there twice"),
        ({"classes": "nowhere.txt"}, "--classes nowhere.txt: no such file"),
        ({"arch": "resnet14-cifar"}, "does not fit resnet14-cifar: missing layer1.1.conv1.weight"),
        ({"arch": "resnet9"}, "architecture 'resnet9': choose from"),
        ({"mean": "0.5,0.5"}, "--mean 0.5,0.5: must be 3 numbers between commas, or 1"),
        ({"mean": "123.7,116.3,103.5"}, "as shares of white (0.485, not 123.7)"),
        ({"std": "a,b,c"}, "--std a,b,c: must be 3 numbers"),
        ({"std": "0,1,1"}, "std=(0.0, 1.0, 1.0): must be above 0"),
        ({"crop": "1.5"}, "--crop 1.5: must be in (0, 1]"),
        ({"shortcut": "B"}, "does not fit resnet8-cifar: missing layer2.0.downsample.0.weight"),
    ],
)
def test_import_of_what_does_not_fit(
    changes: dict[str, str],
    message: str,
    weights: Path,
    resnet: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    code, out, err = resnet(*importing(weights, tmp_path / "m.safetensors", **changes))
    assert (code, out) == (2, "")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["weights.th"]


# The process


def test_from_pictures_to_predictions(resnet: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """The whole spine, once, on pictures of noise that is dark or bright."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 16), ("val", 4)):
        for name, low in (("dark", 0), ("bright", 150)):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(low, low + 100, (8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    run, data = str(tmp_path / "run"), str(tmp_path / "pictures")
    fast = ["--model", "resnet8-cifar", "--epochs", "2", "--set", "data.size=8", "--set", "run.precision=fp32"]
    code, out, err = resnet("train", data, *fast, "--out", run)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == f"next: resnet predict {run} a.jpg"
    assert lines[-2] == f"report: {run}/report.html"
    assert Path(run, "report.html").exists()
    value = json.loads(resnet("evaluate", run, "--json")[1])
    assert value["n"] == 8
    assert f"({value['correct']} of 8; " in lines[-3]
    code, out, _ = resnet("predict", run, f"{data}/val/dark", "--engine", "torch", "--json")
    assert (code, len(out.splitlines())) == (0, 4)
    vectors = tmp_path / "vectors.npy"
    code, out, _ = resnet("embed", run, f"{data}/val", "--out", str(vectors), "--json")
    assert (code, json.loads(out)["dimensions"]) == (0, 64)
    assert np.load(vectors).shape == (8, 64)
    assert resnet("model", f"{run}/model.safetensors")[0] == 0
    code, _, err = resnet("train", data, *fast, "--out", run)
    assert (code, err.split(";")[0]) == (2, f"resnet: {run}: exists already")
