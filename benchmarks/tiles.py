"""What JPEGs made of tiles could add to `native/`, at most: random resized crops of 224 pixels, on one core.

    python benchmarks/tiles.py FOLDER [--out results/tiles.json]

A store could cut pictures into tiles of 64 pixels that are decoded alone (restart markers), so that nothing outside of
the tiles that a crop touches is decoded. Here each crop's tiles are a JPEG of their own, made beforehand with the
picture's own quantisation and sampling, and `decode_crop` takes the crop out of it: no tile needs to be found, and none
put together. Its time beside that of `decode_crop` on the whole picture is the most that tiles can save.

CPU time of one thread, in turns of 25 pictures; the figure is the median of the ratios.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import resnetkit_native
from PIL import Image, JpegImagePlugin

from common import spread, write
from loading import SIZE
from resnetkit.data.transforms import DRAWS, resized_crop_box

TILE, TURN, REPEATS = 64, 25, 7
Crop = tuple[bytes, tuple[int, int, int, int]]  # a JPEG, and left, top, width, height in it


def whole(data: bytes, draws: list[float]) -> Crop:
    width, height = resnetkit_native.size(data)
    left, top, right, bottom = resized_crop_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3), draws)
    return data, (left, top, right - left, bottom - top)


def tiles_alone(crop: Crop) -> Crop:
    """The tiles that the crop touches, as a JPEG."""
    data, (left, top, width, height) = crop
    with Image.open(io.BytesIO(data)) as image:
        first = left // TILE * TILE, top // TILE * TILE
        last = (
            min(image.width, -(-(left + width) // TILE) * TILE),
            min(image.height, -(-(top + height) // TILE) * TILE),
        )
        out = io.BytesIO()
        sampling = JpegImagePlugin.get_sampling(image)
        part = image.crop((*first, *last))
        part.save(out, "JPEG", qtables=image.quantization, subsampling=sampling, optimize=True)
    return out.getvalue(), (left - first[0], top - first[1], width, height)


def seconds(crops: list[Crop], out: bytearray) -> float:
    begin = time.thread_time()
    for data, box in crops:
        resnetkit_native.decode_crop(data, box, SIZE, out=out)
    return time.thread_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/tiles.json"))
    asked = parser.parse_args()
    files = [path.read_bytes() for path in sorted(asked.folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    out, rows = bytearray(SIZE * SIZE * 3), []
    for repeat in range(REPEATS + 1):
        table = np.random.Generator(np.random.Philox(repeat)).random((len(files), DRAWS)).tolist()
        crops = [whole(data, row) for data, row in zip(files, table, strict=True)]
        usable = [crop for crop in crops if Image.open(io.BytesIO(crop[0])).mode == "RGB"]
        apart = [tiles_alone(crop) for crop in usable]
        spent = {"whole": 0.0, "tiles": 0.0}
        for at in range(0, len(usable), TURN):
            turns = [("whole", usable[at : at + TURN]), ("tiles", apart[at : at + TURN])]
            for name, some in turns[:: 1 if (at // TURN + repeat) % 2 else -1]:
                spent[name] += seconds(some, out)
        rows.append({name: 1000 * each / len(usable) for name, each in spent.items()})
    rows = rows[1:]
    write(
        asked.out,
        {
            "what": f"decode_crop, RandomResizedCrop({SIZE}): the whole JPEG against its tiles of {TILE} pixels alone",
            "pictures": len(usable),
            "milliseconds": {name: spread([row[name] for row in rows]) for name in ("whole", "tiles")},
            "tiles_to_whole": spread([row["whole"] / row["tiles"] for row in rows]),
        },
    )


if __name__ == "__main__":
    main()
