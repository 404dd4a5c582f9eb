"""`resnet check` on pictures with planted faults: how many of each kind are found, how many are false, how fast.

    python benchmarks/checking.py FOLDER [--judge DATA MODEL] [--work DIR] [--out results/checking.json]

FOLDER has train/ and val/ with class folders of pictures, such as Tiny ImageNet's. It is checked as it is, so that what
is found there is known; then a copy, in which `EACH` pictures of every kind are faulty, drawn by a seed and disjoint.

recall        planted pictures that are in a finding of their kind, of all that were planted
false alarms  other pictures in findings of the kind, but for the pictures that copies were made of, and for those that
              are found in FOLDER as it is

`--judge` asks for wrong labels: DATA's test pictures, which MODEL was not trained on, as they are and with 3 % of other
labels. Speed: reading alone, of 5,000 of the pictures, `REPEATS` times, from the page cache; and each whole check.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from common import spread, write
from resnetkit.checking import Check, check
from resnetkit.data.loader import default_threads
from resnetkit.data.source import open_data
from resnetkit.data.traits import scan

REPEATS, EACH, SHARE = 5, 50, 0.03
FEW, SMALL = 5, 30  # pictures that are left of a tiny and of a small class


def saved(picture: Image.Image, path: Path, **settings: Any) -> None:
    picture.save(path, **{"format": "JPEG", "quality": 75, **settings})


def with_orientation(picture: Image.Image, path: Path, number: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = number
    saved(picture, path, exif=exif)


def with_alpha(picture: Image.Image, path: Path) -> None:
    picture.putalpha(200)
    picture.save(path.with_suffix(".png"))
    path.unlink()


def with_16_bits(picture: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) << 8).save(path.with_suffix(".png"))
    path.unlink()


# What is done to a file in its place, by the kind of finding that it should be in.
SPOILT: dict[str, Callable[[Image.Image, Path], None]] = {
    "truncated": lambda _, path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) and None,
    "unreadable": lambda _, path: path.write_text("no picture") and None,
    "wrong-extension": lambda picture, path: saved(picture, path, format="PNG"),
    "cmyk": lambda picture, path: saved(picture.convert("CMYK"), path),
    "alpha": with_alpha,
    "16-bit": with_16_bits,
    "exif-rotated": lambda picture, path: with_orientation(picture, path, 6),
    "exif-mirrored": lambda picture, path: with_orientation(picture, path, 2),
    "tiny": lambda picture, path: saved(picture.resize((12, 12)), path),
    "huge": lambda picture, path: saved(picture.resize((400, 400)), path),
    "narrow": lambda picture, path: saved(picture.resize((320, 40)), path),
}
# What a copy of a training picture among those to check with looks like.
COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "quality 30": lambda picture: picture,
    "48x48": lambda picture: picture.resize((48, 48)),
    "25 % brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.25),
    "grey": lambda picture: picture.convert("L"),
    "mirrored": ImageOps.mirror,
    "2 pixels cut off each side": lambda picture: picture.crop((2, 2, picture.width - 2, picture.height - 2)),
    "4 pixels cut off each side": lambda picture: picture.crop((4, 4, picture.width - 4, picture.height - 4)),
}


def plant(folder: Path) -> tuple[dict[str, set[str]], set[str], dict[str, str]]:
    """Spoil a copy of the pictures. What was planted by kind, what copies were made of, class to its confound."""
    dice = random.Random(0)
    files = sorted(path for path in (folder / "train").rglob("*") if path.is_file())
    classes = sorted({path.parent for path in files})
    few, small, low, framed = dice.sample(classes, 4)
    for short, left in ((few, FEW), (small, SMALL)):
        for path in sorted(short.iterdir())[left:]:
            path.unlink()
    for path in sorted(low.iterdir()):
        saved(Image.open(path).convert("RGB"), path, quality=40)
    for path in sorted(framed.iterdir()):
        picture = Image.open(path).convert("RGB")
        saved(ImageOps.expand(picture.resize((56, 56)), 4, "white"), path)
    whole = [path for path in files if path.parent not in (few, small, low, framed)]
    dice.shuffle(whole)
    planted: dict[str, set[str]] = {}

    def name(path: Path) -> str:
        return path.relative_to(folder).as_posix()

    for kind, spoil in SPOILT.items():
        planted[kind] = set()
        for path in (whole.pop() for _ in range(EACH)):
            spoil(Image.open(path).convert("RGB"), path)
            planted[kind].add(name(path if path.exists() else path.with_suffix(".png")))
    made_of = set()
    for kind in ("leak", "labels", *COPIES):
        planted[kind] = set()
        for number, path in enumerate(whole.pop() for _ in range(EACH)):
            made_of.add(name(path))
            own = folder / "val" / path.parent.name
            place = own if kind != "labels" else dice.choice([each for each in classes if each != path.parent])
            copy = place / f"planted-{'-'.join(kind.split())}-{number}.jpg".replace("%", "")
            if kind in COPIES:
                copied = COPIES[kind](Image.open(path).convert("RGB"))
                saved(copied, copy, quality=30 if kind == "quality 30" else 75)
            else:
                shutil.copyfile(path, copy)
            planted[kind].add(name(copy))
    return planted, made_of, {low.name: "JPEG quality", framed.name: "border"}


def in_findings(done: Check) -> dict[str, set[str]]:
    """Kind to the names of the pictures in its findings."""
    name = done.data.pictures.name
    return {f.kind: {name(i) for group in f.groups for i in group.pictures} for f in done.findings}


def compared(done: Check, planted: dict[str, set[str]], made_of: set[str], before: dict[str, set[str]]) -> list[Any]:
    """A row for each kind: planted, found, false alarms."""
    found, rows = in_findings(done), []
    for kind, wanted in planted.items():
        got = found.get("leak-near" if kind in COPIES else kind, set())
        rows.append({"kind": kind, "planted": len(wanted), "found": len(wanted & got), "recall": None})
        rows[-1]["recall"] = rows[-1]["found"] / len(wanted)
    everything = set().union(made_of, *planted.values())
    for kind, got in found.items():
        if kind not in ("confounds", "other-sources", "grey"):
            false = got - everything - before.get(kind, set())
            rows.append({"kind": kind, "false_alarms": len(false)})
    return rows


def confounds_found(done: Check, planted: dict[str, str]) -> dict[str, Any]:
    """Which of the planted confounds are named, and how many others."""
    notes = [group.note for f in done.findings if f.kind == "confounds" for group in f.groups]
    named = {label: any(note.startswith(f"{label}: {what} ") for note in notes) for label, what in planted.items()}
    others = [note for note in notes if note.partition(":")[0] not in planted]
    return {"planted": planted, "named": named, "of_other_classes": others}


def judged(spec: str, model: str) -> dict[str, Any]:
    """Suspects among test pictures as they are, and with a share of wrong labels."""
    data = open_data(spec)
    data = replace(data, splits={"test": data.splits["test"]})
    labels, rows = data.labels, {}
    dice = np.random.default_rng(0)
    wrong = dice.choice(data.used(), round(SHARE * len(data.used())), replace=False)
    other = labels.astype(np.int64)
    other[wrong] = (other[wrong] + dice.integers(1, len(data.classes), len(wrong))) % len(data.classes)
    for what, these, planted in (("as they are", labels, set()), ("3 % wrong", other, set(wrong.tolist()))):
        done = check(replace(data, labels=these), model=model)
        found = {i for f in done.findings if f.kind == "suspects" for i, _ in f.leave_out}
        alike = sum(f.count for f in done.findings if f.kind == "look-alikes")
        rows[what] = {
            "pictures": len(data.used()),
            "planted": len(planted),
            "found": len(found & planted),
            "false_alarms": len(found - planted),
            "look_alikes": alike,
            "notes": [note for note in done.notes if note.startswith("labels")],
        }
    return {"data": "CIFAR-10, test" if "cifar10" in spec else spec, "model": Path(model).name, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--judge", nargs=2, metavar=("DATA", "MODEL"))
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "checking.json")
    wish = parser.parse_args()
    clean = check(wish.folder)
    some = replace(clean.data, splits={"all": clean.data.used()[:: max(1, len(clean.data.used()) // 5000)][:5000]})
    speeds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        scan(some, threads=default_threads())
        speeds.append(len(some.used()) / (time.perf_counter() - begin))
    with tempfile.TemporaryDirectory(dir=wish.work) as work:
        copy = Path(work) / "pictures"
        shutil.copytree(wish.folder, copy)
        planted, made_of, classes = plant(copy)
        done = check(copy)
        as_it_is = in_findings(clean)
        result = {
            "data": {"pictures": len(clean.data.used()), "classes": len(clean.data.classes)},
            "as_it_is": {kind: len(names) for kind, names in as_it_is.items()},
            "leaks": {"as_it_is": clean.leaks, "planted": done.leaks},
            "kinds": compared(done, planted, made_of, as_it_is),
            "classes": {f.kind: list(f.lines) for f in done.findings if f.lines},
            "confounds": confounds_found(done, classes),
            "confounds_as_it_is": confounds_found(clean, {})["of_other_classes"],
            "pictures_per_second": spread(speeds),
            "seconds": {"as_it_is": clean.seconds, "planted": done.seconds},
        }
    if wish.judge:
        result["labels"] = judged(*wish.judge)
    write(wish.out, result)


if __name__ == "__main__":
    main()
