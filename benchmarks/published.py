"""Published CIFAR-10 weights, imported and scored: the same counts as by the code they were published with.

    python benchmarks/published.py WEIGHTS DATA [--out results/published.json]

WEIGHTS  a folder with cifar10-resnet20.th and cifar10-resnet56.th (option A shortcuts, RGB / 255, ImageNet's mean
         and deviation)
DATA     CIFAR-10 as train/<class> and test/<class>. Recompressed pictures give other counts than the original ones:
         say so where a number from them is shown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import resnetkit
from common import write

NETWORKS = ("resnet20-cifar", "resnet56-cifar")
PREPROCESS = resnetkit.Preprocess(
    32, "shorter", 32, "bilinear", 3, "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), exif=False
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/published.json"))
    args = parser.parse_args()
    data = resnetkit.open_data(args.data)
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            source = args.weights / f"cifar10-{name.removesuffix('-cifar')}.th"
            out = Path(folder) / f"{name}.safetensors"
            arch = resnetkit.architecture(name)
            resnetkit.import_weights(source, arch=arch, classes=data.classes, preprocess=PREPROCESS, out=out)
            begin = time.perf_counter()
            result = resnetkit.evaluate(out, data, split="test")
            scores[name] = {
                "n": result.n,
                "correct": result.correct,
                "top1": result.top1,
                "top1_interval": result.top1_interval,
                "seconds": round(time.perf_counter() - begin, 1),
            }
    write(args.out, {"what": "published CIFAR-10 weights on recompressed test pictures (JPEG, quality 75)", **scores})


if __name__ == "__main__":
    main()
