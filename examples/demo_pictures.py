"""Write scikit-learn's digits, 1,797 real pictures of 8x8 pixels, as a folder that `resnet train` takes.

    python examples/demo_pictures.py FOLDER

gives FOLDER/train/<digit>/NNNN.png and FOLDER/val/<digit>/NNNN.png, a fifth of each digit in val, by seed 0. NNNN is
the picture's number in scikit-learn. Run again, it writes the same files; a folder that it did not begin must be empty.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

MARK = ".demo-pictures"  # in a folder that this program began; hidden, so it is no picture to `resnet`


def write_digits(folder: Path) -> str:
    """Write the pictures and say so in one line. Raises FileExistsError for a folder that holds something else."""
    if folder.exists() and not (folder / MARK).exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: not empty, and not written by this program; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text("written by demo_pictures.py\n", encoding="utf-8")
    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), levels 0 … 16 in the source
    numbers = np.arange(len(levels))
    train, val = train_test_split(numbers, test_size=0.2, stratify=digits.target, random_state=0)
    for split, members in (("train", train), ("val", val)):
        for digit in range(10):
            (folder / split / str(digit)).mkdir(parents=True, exist_ok=True)
        for number in members.tolist():
            Image.fromarray(levels[number]).save(folder / split / str(digits.target[number]) / f"{number:04}.png")
    return f"{folder}: {len(train):,} pictures to train on and {len(val):,} to validate on, 10 digits of 8x8 pixels"


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python examples/demo_pictures.py FOLDER")
    try:
        print(write_digits(Path(sys.argv[1])))
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
