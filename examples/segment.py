"""Train something else than a classifier on a network's maps: which pixels belong to which digit.

    python examples/segment.py [--steps 2000] [--test 400] [--out results/segment.json] [--sheet segment.png]

Pictures: scikit-learn's handwritten digits of 8x8 pixels, enlarged and pasted lighter or darker, one or two of them, on
crops of 64x64 from scikit-learn's two photographs. Scored on digits and halves of the photographs that were not trained
on. Some are dark on dark and hardly to be seen; on the whole they are easier than any real scene. This shows how to
build on `features`, and no more.

Network: ResNet-18 of a quarter of its width with a stem of stride 2, so maps of 32, 16, 8 and 4 pixels. Head: a 1x1
convolution on each map, all brought to the size of the finest one and added, as in feature pyramid networks (arXiv
1612.03144), then a 3x3 convolution and the classes, background and ten digits. It is trained twice, from the same
weights of the network, on the same pictures, for as many steps: on all the maps, and on the last one alone, which knows
what there is and has lost where it is. The score is the intersection over union, the mean over the ten digits; whoever
always answers "background" gets 0. Number of steps and learning rate were chosen on 200 pictures made in the same way
as the held-out ones, so the scores are a little kind.

Result: results/segment.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from resnetkit import ResNet, architecture

SIDE, CLASSES, BATCH, SHOWN = 64, 11, 16, 12
# Background, then the digits 0 to 9.
COLOURS = ["#000000", "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231"]
COLOURS += ["#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#ffffff"]

Pixels = NDArray[np.uint8]


class Scenes:
    """Pictures with digits, made anew for every batch; `part` is "train" or "test": other digits, other halves."""

    def __init__(self, part: str, seed: int) -> None:
        digits = load_digits()
        members = train_test_split(
            np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0
        )[part == "test"]
        self.shapes, self.names = digits.images[members] / 16, digits.target[members]  # (n, 8, 8) in 0 … 1
        middle = 320
        halves = slice(None, middle) if part == "train" else slice(middle, None)
        self.photographs = [image[:, halves] for image in load_sample_images().images]
        self.dice = np.random.default_rng(seed)

    def scene(self) -> tuple[Pixels, NDArray[np.int64]]:
        """A picture uint8 (64, 64, 3) and the class of each pixel (64, 64)."""
        photograph = self.photographs[self.dice.integers(len(self.photographs))]
        top, left = (self.dice.integers(full - SIDE + 1) for full in photograph.shape[:2])
        picture = photograph[top : top + SIDE, left : left + SIDE].astype(np.float32)
        truth = np.zeros((SIDE, SIDE), np.int64)
        taken = np.zeros((SIDE, SIDE), bool)
        for _ in range(2):
            which, side = self.dice.integers(len(self.shapes)), int(self.dice.integers(24, 33))
            place = tuple(slice(at, at + side) for at in self.dice.integers(SIDE - side + 1, size=2))
            strength = self.dice.uniform(70, 160) * self.dice.choice([-1, 1])
            if taken[place].any():
                continue  # the second digit, where there is no room for it
            small = Image.fromarray(self.shapes[which].astype(np.float32))
            ink = np.clip(np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)), 0, 1)
            picture[place] += strength * ink[:, :, None]
            truth[place][ink > 0.5] = 1 + self.names[which]
            taken[place] = True
        return np.clip(picture, 0, 255).astype(np.uint8), truth

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Pictures uint8 (count, 64, 64, 3) and classes int64 (count, 64, 64)."""
        pictures, truths = zip(*(self.scene() for _ in range(count)), strict=True)
        return torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(truths))


class Segmenter(nn.Module):
    """Classes for each pixel from the maps `levels` of a ResNet: (N, 64, 64, 3) uint8 to (N, classes, 64, 64)."""

    def __init__(self, backbone: ResNet, levels: tuple[int, ...], channels: int = 32) -> None:
        super().__init__()
        self.backbone, self.levels = backbone, levels
        self.laterals = nn.ModuleList(nn.Conv2d(backbone.feature_channels[level], channels, 1) for level in levels)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        self.classes = nn.Conv2d(channels, CLASSES, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = (pictures.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        maps = self.backbone.features(x)
        size = maps[0].shape[-2:]  # also for the last map alone, so that both heads compute at the same resolution
        laterals = zip(self.laterals, self.levels, strict=True)
        merged = sum(self.enlarged(lateral(maps[level]), size) for lateral, level in laterals)
        return self.enlarged(self.classes(F.relu(self.smooth(merged))), x.shape[-2:])

    @staticmethod
    def enlarged(x: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def train(levels: tuple[int, ...], steps: int) -> Segmenter:
    """A segmenter on these maps; start and pictures depend on nothing but fixed seeds."""
    torch.manual_seed(0)
    arch = replace(architecture("resnet18", stem_stride=2, classes=10), name="resnet18, width 16", width=16)
    model = Segmenter(ResNet(arch), levels).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps + 1, pct_start=0.1)
    scenes = Scenes("train", seed=1)
    for _ in range(steps):
        pictures, truth = scenes.batch(BATCH)
        loss = F.cross_entropy(model(pictures), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def answers(model: Segmenter, pictures: Tensor) -> Tensor:
    """The class of each pixel (N, 64, 64)."""
    return torch.cat([model(part).argmax(1) for part in pictures.split(BATCH)])


def overlap(answer: Tensor, truth: Tensor) -> list[float]:
    """Intersection over union of each digit, pixels of all pictures counted together."""
    table = torch.bincount(CLASSES * truth.flatten() + answer.flatten(), minlength=CLASSES**2).view(CLASSES, CLASSES)
    both = table.diagonal()
    either = table.sum(0) + table.sum(1) - both
    return (both / either.clamp(min=1))[1:].tolist()  # type: ignore[no-any-return]


def contact_sheet(pictures: Tensor, labelled: list[Tensor]) -> Image.Image:
    """A row of pictures, and below it a row for each way to label them."""
    palette = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS], np.uint8)
    rows = [pictures[:SHOWN].numpy(), *(palette[classes[:SHOWN].numpy()] for classes in labelled)]
    framed = [np.pad(row, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=128) for row in rows]
    sheet = Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in framed]))
    return sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST)


def machine() -> dict[str, Any]:
    """What the times depend on."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    cpu = names[0].split(":", 1)[1].strip() if names else platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help=f"of {BATCH} pictures, for each of the two heads")
    parser.add_argument("--test", type=int, default=400, help="held-out pictures to score on")
    parser.add_argument("--out", type=Path, help="write the figures to this .json file")
    parser.add_argument("--sheet", type=Path, default=Path("segment.png"), help="picture, truth, both answers")
    args = parser.parse_args()
    pictures, truth = Scenes("test", seed=2).batch(args.test)
    labelled, scores = [truth], {}
    for name, levels in {"all maps": (0, 1, 2, 3), "last map alone": (3,), "always background": ()}.items():
        begin = time.perf_counter()
        answer = answers(train(levels, args.steps), pictures) if levels else torch.zeros_like(truth)
        seconds, digits = round(time.perf_counter() - begin, 1), overlap(answer, truth)
        scores[name] = {"mean_iou": float(np.mean(digits)), "digits": digits, "seconds": seconds}
        print(f"{name}: mean IoU of the ten digits {scores[name]['mean_iou']:.3f} ({seconds:.0f} s)", flush=True)
        labelled += [answer] if levels else []
    contact_sheet(pictures, labelled).save(args.sheet)
    print(f"{args.sheet}: from top to bottom pictures, truth, answers from {', '.join(list(scores)[:2])}")
    if args.out:
        about = {"what": "examples/segment.py", "steps": args.steps, "batch": BATCH, "held_out": args.test}
        args.out.write_text(json.dumps({**about, "scores": scores, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
