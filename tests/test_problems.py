"""What the report says of the pictures: each kind of problem is found where it is, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from resnetkit.data.audit import audit, without_bad
from resnetkit.data.folder import load_folder
from resnetkit.data.pictures import Data
from resnetkit.data.problems import Problem, across_splits, problems, under_two_labels


def picture(path: Path, seed: int, side: int = 16, mode: str = "RGB", kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, kind)


def look(root: Path) -> tuple[Data, list[Problem]]:
    data = load_folder(root, "photos")
    return data, problems(data, audit(data, threads=2))


def test_nothing_is_wrong_with_good_pictures(tmp_path: Path) -> None:
    for seed, name in enumerate(("a/1", "a/2", "b/1", "b/2")):
        picture(tmp_path / f"{name}.png", seed)
    picture(tmp_path / "a" / "same.png", 0)  # twice in one class and one split: no harm
    assert look(tmp_path)[1] == []


def test_doubles(tmp_path: Path) -> None:
    for name, seed in {
        "train/a/1": 1,
        "val/a/1": 1,
        "train/a/2": 2,
        "train/b/2": 2,
        "train/b/3": 3,
        "val/b/4": 4,
    }.items():
        picture(tmp_path / f"{name}.png", seed)
    for name in ("train/a/5.png", "val/b/5.png"):
        (tmp_path / name).write_bytes(b"")  # equal, but no pictures
    data, found = look(tmp_path)
    kinds = {problem.kind: problem for problem in found}
    assert list(kinds) == ["unreadable", "same picture in two splits", "same picture under two labels"]
    assert kinds["unreadable"].count == 2
    assert kinds["same picture in two splits"].count == 2
    assert kinds["same picture in two splits"].examples == ("train/a/1.png (a) = val/a/1.png (a)",)
    assert kinds["same picture under two labels"].examples == ("train/a/2.png (a) = train/b/2.png (b)",)
    seen = audit(data, threads=1)
    names = [[data.pictures.name(i) for i in group.tolist()] for group in across_splits(data, seen)]
    assert names == [["train/a/1.png", "val/a/1.png"]]
    assert [len(group) for group in under_two_labels(data, seen)] == [2]


def test_unreadable_ones_are_told_after_they_were_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", 0)
    (tmp_path / "a" / "2.png").write_bytes(b"")
    data = load_folder(tmp_path, "photos")
    seen = audit(data, threads=1)
    (problem,) = problems(without_bad(data, seen), seen)
    assert problem == Problem("unreadable", 1, ("a/2.png: empty file",), "left out; mend or remove them")


def test_odd_kinds_have_their_rule(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", 0, mode="RGBA")
    picture(tmp_path / "a" / "2.png", 1, mode="RGBA")
    picture(tmp_path / "a" / "3.jpg", 2, mode="CMYK")
    picture(tmp_path / "a" / "4.jpg", 3, kind="PNG")
    assert [(p.kind, p.count, p.examples) for p in look(tmp_path)[1]] == [
        ("alpha", 2, ("a/1.png", "a/2.png")),
        ("CMYK", 1, ("a/3.jpg",)),
        ("wrong extension", 1, ("a/4.jpg (PNG named .jpg)",)),
    ]
    assert all(problem.advice for problem in look(tmp_path)[1])


def test_tiny_pictures_are_those_far_below_the_median(tmp_path: Path) -> None:
    for seed in range(5):
        picture(tmp_path / "a" / f"{seed}.png", seed, side=64)
    picture(tmp_path / "a" / "edge.png", 8, side=16)
    picture(tmp_path / "a" / "thumb.png", 9, side=15)
    (problem,) = look(tmp_path)[1]
    assert (problem.kind, problem.examples) == ("tiny", ("a/thumb.png (15x15)",))


def test_small_classes(tmp_path: Path) -> None:
    for seed in range(21):
        picture(tmp_path / "train" / "many" / f"{seed}.png", seed)
    for seed in range(4):
        picture(tmp_path / "train" / ("few" if seed < 2 else "rare") / f"{seed}.png", 50 + seed)
    picture(tmp_path / "train" / "rare" / "x.png", 60)
    (problem,) = look(tmp_path)[1]
    assert (problem.kind, problem.count, problem.examples) == ("small classes", 1, ("few: 2 pictures",))


def test_headers_only_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png", 0)
    data = load_folder(tmp_path, "photos")
    (problem,) = problems(data, audit(data, threads=1, limit_bytes=0))
    assert (problem.kind, problem.count) == ("checked by header only", 1)
