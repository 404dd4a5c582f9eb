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
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from resnetkit.check_page import target, write_check
from resnetkit.checking import check
from resnetkit.data import similar
from resnetkit.data.excluded import as_csv, read_names, without_names
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.source import open_data
from resnetkit.data.traits import jpeg_quality, measure
from resnetkit.errors import UserError
from resnetkit.recipe_file import from_dict, to_dict
from resnetkit.shipped import shipped

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
    assert done.findings == ()
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
    pairs = {(int(i), int(j)) for a, b in similar.close(vectors, vectors, 1.0) for i, j in zip(a, b, strict=True)}
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


# --exclude


def test_names_come_back(tmp_path: Path) -> None:
    names = ["a, b.jpg", 'quo"te.jpg', "line\nbreak.jpg", "é.jpg", "\udcff.jpg"]
    (tmp_path / "x.csv").write_text(as_csv((name, "why, so") for name in names), "utf-8", "surrogateescape")
    (tmp_path / "y.txt").write_text("a, b.jpg\nz.jpg\n")
    assert read_names([tmp_path / "x.csv", tmp_path / "y.txt"]) == (*names, "z.jpg")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("x.json", "[]", "stand in a .csv, .tsv or .txt file"),
        ("x.csv", "name\na.jpg\n", "no column 'path'"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_wrong_files_of_names(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        read_names([tmp_path / file])


def test_a_name_that_is_not_there(photos: Path) -> None:
    data = open_data(photos)
    left = without_names(data, ["train/cat/00.jpg"])
    assert len(left.used()) == len(data.used()) - 1
    assert left.notes[-1] == "left out by name: 1 picture"
    with pytest.raises(UserError, match=r"1 name to leave out is none of its pictures: cat/00\.jpg"):
        without_names(data, ["train/cat/00.jpg", "cat/00.jpg"])


def test_train_evaluate_and_resume_without_pictures(photos: Path, resnet: Run) -> None:
    """The run keeps the names: the file that was given may be gone."""
    (photos / "val/cat/again.jpg").write_bytes((photos / "train/cat/00.jpg").read_bytes())
    (photos / "val/cat/cut.jpg").write_text("no picture")
    resnet("check", "photos", "--out", "found")
    recipe = shipped("digits")
    values = to_dict(recipe)
    values["model"]["arch"], values["data"]["size"], values["optim"]["batch"] = "resnet8-cifar", 16, 8
    values["schedule"]["epochs"], values["data"]["channels"] = 1, 3
    from resnetkit import training

    files = ["found/leak.csv", "found/unreadable.csv"]
    done = training.train("photos", recipe=from_dict(values, where="test"), out="run", exclude=files)
    assert done.result.n == 13
    assert json.loads(Path("run/environment.json").read_text())["excluded"] == 2
    Path("found").rename("gone")
    code, output, errors = resnet("evaluate", "run", "--json")  # the run's own pictures, without the broken one
    assert code == 0, errors
    assert json.loads(output)["n"] == 13
    assert training.resume("run").result.n == 13
    (photos / "val/cat/cut.jpg").unlink()
    with pytest.raises(UserError, match="none of its pictures"):
        training.resume("run")


def test_a_changed_list_of_names_is_noticed(tmp_path: Path) -> None:
    from resnetkit.data.excluded import names_of_run

    (tmp_path / "excluded.csv").write_text(as_csv([("a.jpg", ""), ("b.jpg", "")]))
    assert names_of_run(tmp_path, 2) == ("a.jpg", "b.jpg")
    assert names_of_run(tmp_path, 0) == ()
    with pytest.raises(UserError, match="2 names, not the 3"):
        names_of_run(tmp_path, 3)


def test_pictures_in_memory() -> None:
    """Grey arrays have no file to be odd, and their copies are found by their pixels."""
    pixels: NDArray[np.uint8] = np.stack([np.asarray(scene(i).convert("L"))[:, :, None] for i in (0, 1, 2, 0)])
    data = Data("made", Arrays(pixels, (("m", 4),)), np.array([0, 1, 0, 0]), ("a", "b"), {"all": np.arange(4)})
    divided = replace(data, splits={"train": np.arange(3), "test": np.array([3])})
    done = check(divided)
    assert [(f.kind, f.groups[0].pictures) for f in done.findings if f.groups] == [("leak", (0, 3))]
