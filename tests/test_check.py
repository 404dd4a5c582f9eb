"""`resnet check`: faults planted in good pictures are found, and nothing else; its files; `--exclude`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from resnetkit import suspects as suspecting
from resnetkit.calibration import fit, softmax
from resnetkit.check_page import target, write_check
from resnetkit.checking import check
from resnetkit.data import similar
from resnetkit.data.confounds import stumps
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.traits import jpeg_quality, measure
from resnetkit.data.transforms import Preprocess
from resnetkit.model import ResNet, architecture
from resnetkit.suspects import components
from resnetkit.weights import ModelFile, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

Run = Callable[..., tuple[int, str, str]]


def scene(seed: int, side: int = 64) -> Image.Image:
    """A picture of large and small blobs, as unlike another one as photographs are."""
    dice = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(dice.integers(0, 256, (n, n, 3), np.uint8)).resize((side, side), Image.BICUBIC), float
        )
        for n in (4, 8, 16)
    ]
    return Image.fromarray((0.5 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2]).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """train/ and val/ of two classes, with 24 and 12 pictures, in which nothing is wrong."""
    for i in range(36):
        folder = tmp_path / "photos" / ("train" if i < 24 else "val") / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        scene(i).save(folder / f"{i:02}.jpg", quality=90)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "photos"


def found(photos: Path) -> dict[str, list[set[str]]]:
    """Kind to the pictures of each of its groups."""
    done = check(photos)
    name = done.data.pictures.name
    return {f.kind: [{name(i) for i in group.pictures} for group in f.groups] for f in done.findings}


def test_good_pictures_have_no_fault(photos: Path) -> None:
    done = check(photos)
    assert (done.findings, [note for note in done.notes if "exact copies alone" in note]) == ((), [])
    assert not done.leaks


def test_exact_copies_across_splits_and_labels(photos: Path) -> None:
    (photos / "val/cat/again.jpg").write_bytes((photos / "train/cat/00.jpg").read_bytes())
    Image.open(photos / "train/dog/03.jpg").save(photos / "train/cat/stored.png")  # other bytes, the same pixels
    (photos / "train/dog/twice.jpg").write_bytes((photos / "train/dog/05.jpg").read_bytes())
    done = check(photos)
    assert found(photos) == {
        "leak": [{"train/cat/00.jpg", "val/cat/again.jpg"}],
        "labels": [{"train/dog/03.jpg", "train/cat/stored.png"}],
        "copies": [{"train/dog/05.jpg", "train/dog/twice.jpg"}],
    }
    leave = {f.kind: {done.data.pictures.name(i) for i, _ in f.leave_out} for f in done.findings}
    assert leave == {
        "leak": {"train/cat/00.jpg"},  # the picture to check with stays
        "labels": {"train/dog/03.jpg", "train/cat/stored.png"},
        "copies": {"train/dog/twice.jpg"},
    }
    assert done.leaks


@pytest.mark.parametrize(
    "change",
    [
        lambda im: im.resize((40, 48)),
        lambda im: im.transpose(Image.FLIP_LEFT_RIGHT),
        lambda im: ImageEnhance.Brightness(im).enhance(1.2),
        lambda im: im.convert("L"),
    ],
    ids=["smaller", "mirrored", "brighter", "grey"],
)
def test_near_copies(photos: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    change(Image.open(photos / "train/cat/02.jpg")).save(photos / "val/cat/near.jpg", quality=60)
    assert found(photos)["leak-near"] == [{"train/cat/02.jpg", "val/cat/near.jpg"}]
    assert check(photos).leaks


def test_frames_make_no_copies(photos: Path) -> None:
    """White frames are alike; what they hold is not."""
    for path in photos.rglob("*.jpg"):
        ImageOps.expand(Image.open(path).resize((52, 52)), 6, "white").save(path, quality=90)
    assert set(found(photos)) == set()
    Image.open(photos / "train/cat/02.jpg").resize((48, 48)).save(photos / "val/cat/near.jpg")
    assert found(photos) == {"leak-near": [{"train/cat/02.jpg", "val/cat/near.jpg"}]}


def test_a_copy_turned_by_exif_is_the_same_picture(photos: Path) -> None:
    """The file holds the picture upside down, and its orientation says so."""
    turned, exif = Image.open(photos / "train/cat/02.jpg").transpose(Image.ROTATE_180), Image.Exif()
    exif[0x0112] = 3
    turned.save(photos / "val/cat/near.jpg", quality=90, exif=exif)
    kinds = found(photos)
    assert kinds["leak-near"] == [{"train/cat/02.jpg", "val/cat/near.jpg"}]
    assert kinds["exif-rotated"] == [{"val/cat/near.jpg"}]


def test_files_that_are_odd(photos: Path) -> None:
    cat, picture = photos / "train/cat", scene(100)
    whole = (cat / "00.jpg").read_bytes()
    (cat / "cut.jpg").write_bytes(scene_bytes(101)[: len(whole) // 2])
    (cat / "text.jpg").write_text("no picture")
    picture.convert("CMYK").save(cat / "cmyk.jpg")
    scene(102).save(cat / "alpha.png")
    with_alpha = scene(103).convert("RGBA")
    with_alpha.putalpha(200)
    with_alpha.save(cat / "alpha.png")
    scene(104).save(cat / "named.jpg", "PNG")
    deep = np.random.default_rng(0).integers(0, 65536, (64, 64), np.uint16)
    Image.fromarray(deep).save(cat / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 5
    scene(105).save(cat / "mirror.jpg", exif=exif)
    scene(106, 12).save(cat / "small.jpg")
    scene(107, 400).save(cat / "huge.jpg")
    scene(108, 320).resize((320, 40)).save(cat / "narrow.jpg")
    kinds = {kind: {Path(name).name for group in groups for name in group} for kind, groups in found(photos).items()}
    assert kinds == {
        "unreadable": {"text.jpg"},
        "truncated": {"cut.jpg"},
        "cmyk": {"cmyk.jpg"},
        "alpha": {"alpha.png"},
        "wrong-extension": {"named.jpg"},
        "16-bit": {"deep.png"},
        "grey": {"deep.png"},
        "exif-mirrored": {"mirror.jpg"},
        "tiny": {"small.jpg"},
        "huge": {"huge.jpg", "narrow.jpg"},
        "narrow": {"narrow.jpg"},
    }


def scene_bytes(seed: int) -> bytes:
    file = io.BytesIO()
    scene(seed).save(file, "JPEG", quality=90)
    return file.getvalue()


def test_tiny_and_small_classes() -> None:
    labels = np.repeat([0, 1, 2], [200, 12, 3])
    pixels = np.stack([np.asarray(scene(i)) for i in range(215)])
    data = Data("made", Arrays(pixels, (("made", 215),)), labels, ("a", "b", "c"), {"all": np.arange(215)})
    lines = {f.kind: f.lines for f in check(data).findings}
    assert lines == {"tiny-classes": ("c: 3 pictures",), "small-classes": ("b: 12 pictures",)}


@pytest.mark.parametrize("quality", [10, 35, 50, 75, 92, 100])
def test_jpeg_quality_is_pillows(quality: int) -> None:
    file = io.BytesIO()
    scene(0).save(file, "JPEG", quality=quality)
    assert jpeg_quality(file.getvalue()) == pytest.approx(quality, abs=1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_the_hash_of_a_mirror_image_is_the_mirrored_hash(seed: int) -> None:
    """`measure` gives both, so a mirrored copy is found by one comparison."""
    thumb = np.asarray(scene(seed, 32))
    hashes, _, _ = measure(np.stack([thumb, thumb[:, ::-1]]))
    assert hashes[0, 1] == hashes[1, 0]


def test_pairs_are_those_of_a_plain_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similar, "BLOCK", 7)  # so that there are several
    vectors = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    wanted = {(i, j) for i in range(30) for j in range(i + 1, 30) if vectors[i] @ vectors[j] >= 1}
    pairs = {(int(i), int(j)) for a, b in similar.close((vectors, vectors, 1.0)) for i, j in zip(a, b, strict=True)}
    assert pairs == wanted


def test_groups_are_connected_components() -> None:
    groups = similar.Groups(7)
    for a, b in ((5, 6), (0, 3), (3, 5), (0, 6), (1, 2)):
        groups.join(similar.Copy(a, b, 1.0))
    assert [part.tolist() for part in groups.members()] == [[0, 3, 5, 6], [1, 2]]
    assert len(groups.copies) == 4  # (0, 6) joins nothing


# The command


def test_command(photos: Path, resnet: Run) -> None:
    """Exit 1 for a leak; page, JSON and CSVs; no file of the pictures is touched."""
    (photos / "val/cat/again.jpg").write_bytes((photos / "train/cat/00.jpg").read_bytes())
    (photos / "train/dog/<b>.jpg").write_text("no picture")
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in photos.rglob("*.jpg")}
    code, output, _ = resnet("check", "photos")
    assert code == 1
    assert "a split leaks" in output
    assert "page: checks/photos-1/check.html" in output
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in photos.rglob("*") if p.is_file()} == before
    folder = Path("checks/photos-1")
    assert {p.name for p in folder.iterdir()} == {"check.html", "check.json", "leak.csv", "unreadable.csv"}
    with (folder / "leak.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["train/cat/00.jpg"]
    about = json.loads((folder / "check.json").read_text())
    assert about["leaks"] is True
    assert about["findings"][0]["groups"] == [
        {"pictures": ["train/cat/00.jpg", "val/cat/again.jpg"], "note": "the same bytes"}
    ]
    page = (folder / "check.html").read_text()
    assert "<b>.jpg" not in page  # names are escaped
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)|@import|<script", page)
    assert page.count("<img") == page.count('alt="') == 2
    assert resnet("check", "photos")[1].endswith("page: checks/photos-2/check.html\n")


def test_command_without_a_leak(photos: Path, resnet: Run) -> None:  # noqa: ARG001
    code, output, _ = resnet("check", "photos", "--out", "page.html", "--json")
    assert code == 0
    about = json.loads(output)
    assert about["files"] == ["page.html", "page.json"]
    assert about["leaks"] is False
    assert "Nothing to mend" in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("out", "message"),
    [("photos/check", "lies among the pictures"), ("photos/train/a.html", "lies among"), ("photos", "exists already")],
)
def test_a_place_that_is_refused(photos: Path, resnet: Run, out: str, message: str) -> None:  # noqa: ARG001
    code, _, errors = resnet("check", "photos", "--out", out)
    assert code == 2
    assert message in errors


def test_the_page_stays_below_its_bound(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every finding still shows its first group."""
    for i in range(6):
        (photos / f"val/cat/again{i}.jpg").write_bytes((photos / f"train/cat/{2 * i:02}.jpg").read_bytes())
        (photos / f"train/dog/twice{i}.jpg").write_bytes((photos / f"train/dog/{2 * i + 1:02}.jpg").read_bytes())
    monkeypatch.setattr("resnetkit.check_page.BYTES", 20_000)
    done = check(photos)
    page = write_check(done, target("out", photos))[0]
    assert len(page.read_bytes()) < 20_000 * 2 + 20_000
    assert [f.kind for f in done.findings] == ["leak", "copies"]
    assert all(f'id="{f.kind}"' in page.read_text() for f in done.findings)


def test_pictures_in_memory() -> None:
    """Grey arrays have no file to be odd, and their copies are found by their pixels."""
    pixels: NDArray[np.uint8] = np.stack([np.asarray(scene(i).convert("L"))[:, :, None] for i in (0, 1, 2, 0)])
    data = Data("made", Arrays(pixels, (("m", 4),)), np.array([0, 1, 0, 0]), ("a", "b"), {"all": np.arange(4)})
    divided = replace(data, splits={"train": np.arange(3), "test": np.array([3])})
    done = check(divided)
    assert [(f.kind, f.groups[0].pictures) for f in done.findings if f.groups] == [("leak", (0, 3))]


def test_what_is_too_small_for_near_copies_is_said() -> None:
    pixels = np.stack([np.asarray(scene(i, 8)) for i in range(4)])
    data = Data("made", Arrays(pixels, (("m", 4),)), np.array([0, 1, 0, 1]), ("a", "b"), {"all": np.arange(4)})
    notes = check(data).notes
    assert notes[0].startswith("4 pictures have a side below 32 pixels: looked for among exact copies alone")


# Confounds and labels


def test_a_confound_is_found_and_a_tendency_is_not() -> None:
    """One class is stored at another quality; another is a little brighter, as photographs of snow are."""
    dice = np.random.default_rng(0)
    keys = np.repeat([0, 1, 2], 100)
    quality = np.where(keys == 1, 60.0, 90.0)
    quality[:3] = 60.0
    values = {"JPEG quality": quality, "brightness": dice.normal(100, 20, 300) + 8 * (keys == 2), "width": np.ones(300)}
    (stump,) = stumps(values, keys, 3)
    assert (stump.name, stump.key, stump.below) == ("JPEG quality", 1, True)
    assert stump.inside == 1
    assert stump.balanced > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_chance_gives_no_confound(seed: int) -> None:
    dice = np.random.default_rng(seed)
    values = {name: dice.normal(size=400) for name in "abcdefgh"}
    assert stumps(values, dice.integers(0, 20, 400), 20) == []


def test_a_confound_of_pictures(photos: Path) -> None:
    for i in range(60):
        scene(1000 + i).save(photos / f"train/cat/q{i}.jpg", quality=30)
        scene(2000 + i).save(photos / f"train/dog/q{i}.jpg", quality=90)
    (finding,) = [f for f in check(photos).findings if f.kind == "confounds"]
    (group,) = [g for g in finding.groups if g.note.startswith("cat: JPEG quality at most 30 in ")]
    assert len(group.pictures) == 4


def test_answers_of_the_ridge_are_those_of_a_fit_without_the_picture() -> None:
    """The closed form against one fit for each picture left out, with the components and the mean of all."""
    dice = np.random.default_rng(0)
    labels = np.arange(30) % 3
    vectors = (dice.normal(size=(30, 4)) + labels[:, None]).astype(np.float32)
    x, strength = components(vectors)
    design = np.hstack([np.ones((30, 1)), x]).astype(np.float64)
    wanted = np.eye(3)[labels]
    errors, answers = [], []
    for penalty in suspecting.PENALTIES:
        ridge = np.diag([0.0, *([30 * penalty * strength.mean()] * x.shape[1])])
        rows = []
        for i in range(30):
            others = np.arange(30) != i
            a = design[others]
            rows.append(design[i] @ np.linalg.solve(a.T @ a + ridge, a.T @ wanted[others]))
        answers.append(np.array(rows))
        errors.append(((answers[-1] - wanted) ** 2).mean())
    scores = suspecting.left_out(vectors, labels, 3) / suspecting.SHARPER
    np.testing.assert_allclose(scores, answers[int(np.argmin(errors))], atol=2e-4)


def test_wrong_labels_are_found() -> None:
    """Of 400 pictures of four well separated classes 20 have another label; few of the others are suspected."""
    dice = np.random.default_rng(0)
    truth = np.arange(400) % 4
    vectors = (3 * np.eye(8)[truth] + dice.normal(size=(400, 8))).astype(np.float32)
    labels = truth.copy()
    labels[:20] = (labels[:20] + 1) % 4
    scores = suspecting.left_out(vectors, labels, 4)
    rows, answers = suspecting.confident(softmax(scores, fit(scores, labels)), labels)
    assert len(set(rows.tolist()) & set(range(20))) >= 12
    assert len(set(rows.tolist()) - set(range(20))) <= 4
    assert (answers == truth[rows]).mean() > 0.9


def test_pixels_that_know_nothing_judge_no_label(photos: Path) -> None:
    done = check(photos)
    assert "suspects" not in {f.kind for f in done.findings}
    assert any(note.startswith("labels were not judged") for note in done.notes)


def test_with_a_model(photos: Path, resnet: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crop that the hash alone does not take for a copy; the bound is that of a network that was never trained."""
    monkeypatch.setattr("resnetkit.data.duplicates.COSINE", 0.8)
    torch.manual_seed(0)
    network = ResNet(architecture("resnet8-cifar", classes=2)).eval()
    preprocess = Preprocess(32, "shorter", 32, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
    save_model(ModelFile(network, ("cat", "dog"), preprocess), Path("m.safetensors"))
    picture = Image.open(photos / "train/cat/02.jpg")
    picture.crop((3, 3, 61, 61)).save(photos / "val/cat/crop.jpg", quality=90)
    assert "leak-near" not in found(photos)
    code, output, errors = resnet("check", "photos", "--model", "m.safetensors", "--json")
    assert code == 0, errors
    (alike,) = [f for f in json.loads(output)["findings"] if f["kind"] == "look-alikes"]
    assert alike["groups"][0]["pictures"] == ["train/cat/02.jpg", "val/cat/crop.jpg"]
