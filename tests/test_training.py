"""Training and resuming: the same bits wherever a run was stopped, and what happens when it cannot go on."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import resnetkit
from resnetkit import checkpoint, runs
from resnetkit.errors import UserError
from resnetkit.events import Event, Finished, Found, Progress
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import with_settings
from resnetkit.shipped import shipped
from resnetkit.training import resuming, training
from resnetkit.weights import open_model

COLOURS = {"blue": (30, 40, 200), "green": (20, 180, 40), "red": (200, 30, 20)}
PER_CLASS = 14
TINY = [
    "model.arch=resnet8-cifar",
    "data.size=12",
    "optim.batch=8",
    "optim.lr=0.05",
    "schedule.epochs=3",
    "run.checkpoint_steps=4",
    "run.precision=fp32",
]  # 33 training pictures, so 4 steps an epoch and 12 in all
EVERYTHING = [
    *("augment.jitter=0.3", "augment.erase=0.5", "augment.mixup=0.4", "augment.cutmix=1", "optim.accumulate=2"),
    *("optim.clip=1", "optim.ema=0.9", "optim.label_smoothing=0.1", "schedule.decay=step", "run.precision=bf16"),
    *("run.eval_epochs=2", "run.threads=3", "run.cache_mb=0", "data.normalise=pixel-mean"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "colours")


def make_pictures(folder: Path) -> Path:
    """Noise around three colours, PNGs of 16x14 pixels."""
    dice = np.random.Generator(np.random.Philox(0))
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            noise = dice.normal(0, 60, (14, 16, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def tiny(*more: str) -> Recipe:
    return with_settings(shipped("small"), [*TINY, *more])


def run_until(events: Iterator[Event], step: int) -> list[Event]:
    """Follow a training until after a step, then let it die without a word, as a power cut would."""
    seen = []
    for event in events:
        seen.append(event)
        if isinstance(event, Progress) and event.step >= step:
            break
    events.close()  # type: ignore[attr-defined]
    return seen


def written(run: Path) -> dict[str, Any]:
    """Everything of a finished run that shall not depend on how often it was stopped."""
    times = ("seconds", "images_per_second")
    log = [{key: value for key, value in line.items() if key not in times} for line in runs.read_log(run)]
    names = ["model.safetensors", "result.json", "recipe.json", "split.csv", "checkpoints/best.safetensors"]
    names += [f"checkpoints/{path.name}" for path in checkpoint.saved(run)]
    return {"log": log, **{name: (run / name).read_bytes() for name in names}}


@pytest.fixture(scope="module", params=[[], EVERYTHING], ids=["plain", "everything"])
def undisturbed(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, dict[str, Any]]:
    """A recipe and what a run of it left alone writes."""
    recipe = tiny(*request.param)
    run = tmp_path_factory.mktemp("runs") / "run"
    resnetkit.train(pictures, recipe=recipe, out=run)
    return recipe, written(run)


@pytest.mark.parametrize("stops", [[1, 3, 4, 5, 6, 9], [7, 7, 8, 12]], ids=str)
def test_a_run_ends_with_the_same_bits_wherever_it_was_stopped(
    stops: list[int], undisturbed: tuple[Recipe, dict[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    recipe, expected = undisturbed
    run = tmp_path / "run"
    run_until(training(pictures, recipe=recipe, out=run), stops[0])
    for stop in stops[1:]:
        assert not (run / "model.safetensors").exists()
        run_until(resuming(run), stop)
    resnetkit.resume(run)
    assert written(run) == expected


def test_pictures_named_from_where_one_stood_stay_so_named(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on in another folder, and its files still say the name that was typed."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    monkeypatch.chdir(pictures.parent)
    resnetkit.train(pictures.name, recipe=tiny(), out=whole)
    run_until(training(pictures.name, recipe=tiny(), out=part), 7)
    monkeypatch.chdir(tmp_path)
    assert resnetkit.resume(part).result.protocol.startswith(f"{pictures.name}, ")
    assert written(part) == written(whole)


def test_a_finished_run_may_be_resumed(
    undisturbed: tuple[Recipe, dict[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    recipe, expected = undisturbed
    resnetkit.train(pictures, recipe=recipe, out=tmp_path / "run")
    assert written(tmp_path / "run") == expected
    again = resnetkit.resume(tmp_path / "run")
    assert written(tmp_path / "run") == expected
    assert again.report.is_file()


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    undisturbed: tuple[Recipe, dict[str, Any]], pictures: Path, tmp_path: Path
) -> None:
    recipe, expected = undisturbed
    run = tmp_path / "run"
    run_until(training(pictures, recipe=recipe, out=run), 10)
    newest = checkpoint.saved(run)[-1]
    damaged = bytearray(newest.read_bytes())
    damaged[-100] ^= 1
    newest.write_bytes(damaged)
    seen = list(resuming(run))
    (found,) = [event for event in seen if isinstance(event, Found)]
    assert str(newest) in found.lines[0]
    assert "at step 4 of 12" in found.lines[-1]
    assert written(run) == expected


def test_what_a_kill_left_half_written_is_removed(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_until(training(pictures, recipe=tiny(), out=run), 5)
    parts = [run / ".log.jsonl.77.part", run / "checkpoints" / ".step-000000008.safetensors.77.part"]
    for part in parts:
        part.write_bytes(b"half")
    resnetkit.resume(run)
    assert list(run.rglob("*.part")) == []


def test_two_runs_are_the_same_and_another_seed_another(pictures: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        resnetkit.train(pictures, recipe=tiny(f"run.seed={seed}"), out=tmp_path / name)
    first, second, other = (written(tmp_path / name) for name in "abc")
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]


def test_it_learns_what_there_is_to_learn(pictures: Path, tmp_path: Path) -> None:
    """Colours are told apart after some epochs, and what is returned, written and evaluated is one score."""
    finished = resnetkit.train(pictures, recipe=tiny("schedule.epochs=12"), out=tmp_path / "run")
    result = finished.result
    assert result.n == 9  # a fifth of 14, of each class
    assert result.top1 == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["result"]["correct"] == result.correct
    assert resnetkit.evaluate(tmp_path / "run") == result
    assert open_model(tmp_path / "run").metrics["top1"] == result.top1
    (red,) = resnetkit.load(tmp_path / "run").predict([pictures / "red" / "0.png"], top=1)
    assert red.answer == "red"


def test_the_last_epoch_is_scored_and_may_be_the_best(pictures: Path, tmp_path: Path) -> None:
    """Also when the evaluation interval does not fall on it."""
    run = tmp_path / "run"
    resnetkit.train(pictures, recipe=tiny("schedule.epochs=8", "run.eval_epochs=100"), out=run)
    scored = [line for line in runs.read_log(run) if line["score"]]
    assert [line["epoch"] for line in scored] == [8]
    best = open_model(run / "checkpoints" / "best.safetensors")
    assert best.metrics["step"] == 32
    assert best.metrics["top1"] == scored[0]["score"]["top1"]


def test_input_that_is_refused_leaves_nothing_behind(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the folder runs/ that the run would have been made in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nowhere"):
        resnetkit.train("nowhere")
    with pytest.raises(UserError, match="resnet51"):
        resnetkit.train(pictures, recipe=tiny("model.arch=resnet51"))
    assert list(tmp_path.iterdir()) == []


def test_finetuning_keeps_a_frozen_backbone(pictures: Path, tmp_path: Path) -> None:
    resnetkit.train(pictures, recipe=tiny(), out=tmp_path / "first")
    fewer = tmp_path / "two"
    fewer.mkdir()
    for name in ("red", "blue"):
        (fewer / name).symlink_to(pictures / name)
    recipe = with_settings(
        shipped("finetune"), ["optim.freeze=backbone", "schedule.epochs=2", "optim.batch=8", "run.precision=fp32"]
    )
    resnetkit.train(fewer, recipe=recipe, weights=tmp_path / "first", out=tmp_path / "second")
    before, after = (open_model(tmp_path / name) for name in ("first", "second"))
    assert after.classes == ("blue", "red")
    assert after.preprocess == before.preprocess
    theirs = before.network.state_dict()
    for name, tensor in after.network.state_dict().items():
        if not name.startswith("fc."):
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)


def test_accumulated_parts_make_the_same_step(pictures: Path, tmp_path: Path) -> None:
    """With frozen statistics the gradient of a batch is the sum of its parts' gradients."""
    resnetkit.train(pictures, recipe=tiny("schedule.epochs=1"), out=tmp_path / "first")
    heads = []
    for parts in (1, 4):
        recipe = tiny("optim.freeze=backbone", f"optim.accumulate={parts}")
        out = tmp_path / f"parts-{parts}"
        resnetkit.train(pictures, recipe=recipe, weights=tmp_path / "first", out=out)
        heads.append(open_model(out).network.state_dict()["fc.weight"])
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_no_number_stops_the_run(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"^step \d+: the loss is (nan|inf) at learning rate [\d.]+e\+\d+; ") as failure:
        resnetkit.train(pictures, recipe=tiny("optim.lr=1e30", "schedule.warmup_steps=0"), out=run)
    last = checkpoint.saved(run)[-1]
    assert str(last) in str(failure.value)
    tensors, _, notes = checkpoint.load_latest(run)
    assert notes == []
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    number: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    real = checkpoint.write_bytes

    def refuse(path: Path, data: bytes) -> None:
        if "step-000000008" in path.name:
            raise OSError(number, "refused", str(path))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_bytes", refuse)
        with pytest.raises(UserError, match=r"cannot be written .*step-000000004.* last good one.*resnet resume"):
            resnetkit.train(pictures, recipe=tiny(), out=run)
    resnetkit.train(pictures, recipe=tiny(), out=tmp_path / "alone")
    resnetkit.resume(run)
    assert written(run) == written(tmp_path / "alone")


@pytest.mark.parametrize(
    ("module", "refusing", "advice"),
    [
        (runs, "append_log", "resnet resume"),
        (runs, "write_beginning", "choose another --out"),
        (checkpoint, "write", "choose another --out"),
    ],
)
def test_other_files_that_cannot_be_written(
    module: Any, refusing: str, advice: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, refusing, refuse)
    with pytest.raises(UserError, match=f"^{tmp_path}/runs/run: .*No space left on device.*{advice}"):
        resnetkit.train(pictures, recipe=tiny(), out=tmp_path / "runs" / "run")
    left = [path.name for path in (tmp_path / "runs").iterdir()]
    assert left == (["run"] if refusing == "append_log" else [])


def test_a_run_in_use_is_refused(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    events = training(pictures, recipe=tiny(), out=run)
    while not isinstance(next(events), Progress):
        pass
    with pytest.raises(UserError, match="another process is working on this run"):
        resnetkit.resume(run)
    events.close()  # type: ignore[attr-defined]
    assert isinstance(resnetkit.resume(run), Finished)


@pytest.mark.parametrize("spec", ["pictures", "cifar10:pictures"])
def test_a_run_is_resumed_and_evaluated_from_any_folder(
    spec: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / split).symlink_to(pictures)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    run_until(training(spec, recipe=tiny(), out="run"), 5)
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = resnetkit.resume(tmp_path / "run").result
    assert resnetkit.evaluate(tmp_path / "run").correct == result.correct


def test_changed_pictures_are_refused(pictures: Path, tmp_path: Path) -> None:
    copy, run = tmp_path / "copy", tmp_path / "run"
    for picture in pictures.rglob("*.png"):
        (copy / picture.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / picture.parent.name / picture.name).write_bytes(picture.read_bytes())
    run_until(training(copy, recipe=tiny(), out=run), 5)
    Image.new("RGB", (16, 14)).save(copy / "red" / "0.png")
    with pytest.raises(UserError, match="the pictures are not those that"):
        resnetkit.resume(run)


def test_bad_pictures_stop_before_training_or_are_left_out(pictures: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for picture in pictures.rglob("*.png"):
        (copy / picture.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / picture.parent.name / picture.name).write_bytes(picture.read_bytes())
    whole = (copy / "red" / "3.png").read_bytes()
    (copy / "red" / "3.png").write_bytes(whole[: len(whole) // 2])
    (copy / "blue" / "notes.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"(?s)blue/notes\.jpg.*red/3\.png"):
        resnetkit.train(copy, recipe=tiny(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    finished = resnetkit.train(copy, recipe=tiny("data.bad=skip"), out=tmp_path / "run")
    about = json.loads((tmp_path / "run" / "result.json").read_text())
    (unreadable,) = [problem for problem in about["problems"] if problem["kind"] == "unreadable"]
    assert unreadable["count"] == 2
    assert [example.split(":")[0] for example in unreadable["examples"]] == ["blue/notes.jpg", "red/3.png"]
    assert "notes.jpg" in finished.report.read_text()


def test_what_had_to_be_assumed_of_weights_is_said(pictures: Path, tmp_path: Path) -> None:
    """A state dict tells nothing of the pictures it was made for."""
    torch.manual_seed(0)
    network = resnetkit.ResNet(resnetkit.architecture("resnet8-cifar"))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    recipe = with_settings(shipped("finetune"), ["model.arch=resnet8-cifar", "schedule.epochs=1"])
    events = list(training(pictures, recipe=recipe, weights=tmp_path / "weights.pth", out=tmp_path / "run"))
    (found,) = [event for event in events if isinstance(event, Found)]
    (said,) = [line for line in found.lines if "assumed" in line]
    assert "shorter side 32 bilinear" in said
    assert said in runs.read_environment(tmp_path / "run").derived
