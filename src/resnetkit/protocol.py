"""How pictures are looked at when a model is scored: one crop, ten crops, or densely at several scales.

1-crop   the centre crop of `Preprocess`.
10-crop  the shorter side resized to resize_to; the four corners and the centre of size x size and their mirror images;
         the softmax averaged over the ten (Krizhevsky 2012, Sec. 4.1).
dense    the whole resized picture and its mirror image at each scale (1409.1556, Sec. 3.2): the dense layer answers
         at every window of the last map that is as large as the map of a size x size input, at stride 1; the logits
         are averaged over the windows, then the softmax over mirror images and scales. In the paper: "fully
         convolutional", shorter sides 224, 256, 384, 480, 640 (1512.03385, Sec. 3.4).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from resnetkit.data.loader import Reader, evaluation_batches, evaluation_views
from resnetkit.data.pictures import Data, Pixels, name_bad
from resnetkit.data.resizing import resized
from resnetkit.data.transforms import Preprocess
from resnetkit.distributed import ALONE, Ranks
from resnetkit.errors import Diverged, UserError, nearest
from resnetkit.model import ResNet

Kind = Literal["1-crop", "10-crop", "dense"]
Shares = Callable[[Tensor], Tensor]  # logits to probabilities, both (n, classes)

BATCH = 128  # pictures of size x size that the network sees at a time, or as many pixels in other shapes
READ = 4 * BATCH  # as many pictures' pixels, in views, are made by the threads before the network gets them
LONGEST = 16  # times the shorter side: what is more of a picture's length stays out, or a thread would fill the memory


@dataclass(frozen=True)
class Protocol:
    """The views of a picture. Raises UserError for values that cannot be.

    scales  of dense: shorter sides in pixels, none below the input's size; none given: the model's own resize_to
    size    another input size than the model's; the resized side grows with it
    crop    size / resized side, instead of the model's own ratio: 288 with 1.0 is 288 of 288
    """

    kind: Kind = "1-crop"
    scales: tuple[int, ...] = ()
    size: int | None = None
    crop: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            hint = nearest(str(self.kind), get_args(Kind))
            raise UserError(f"protocol {self.kind!r}: choose from {', '.join(get_args(Kind))}{hint}")
        if self.scales and self.kind != "dense":
            raise UserError(f"scales: {self.kind} has none; leave them out, or take the protocol dense")
        for name, numbers in (("scales", self.scales), ("size", () if self.size is None else (self.size,))):
            for number in numbers:
                if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                    raise UserError(f"{name}: {number!r} must be a whole number of pixels, 1 or more")
        twice = [scale for scale in self.scales if self.scales.count(scale) > 1]
        if twice:
            raise UserError(f"scales: {twice[0]} stands there twice; name each once")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise UserError(f"crop {self.crop:g}: must be in (0, 1], such as 0.875 for 224 of 256")
        if self.crop is not None and self.scales:
            raise UserError("crop: the scales say how large pictures become; leave one of the two out")

    def preprocess(self, own: Preprocess) -> Preprocess:
        """A model's preprocessing as this protocol has it. Raises UserError where the model cannot follow."""
        pixel_mean = len(own.mean) != own.channels
        size = self.size or own.size
        if pixel_mean and size != own.size:
            raise UserError(f"size {size}: the model subtracts a mean picture of {own.size} pixels; leave size out")
        if pixel_mean and self.kind == "dense":
            raise UserError(
                "protocol dense: the model subtracts a mean picture, which fits no other size; take 10-crop"
            )
        # Rounded down, as in timm.
        side = math.floor(size / self.crop) if self.crop else size * own.resize_to // own.size
        small = min(self.scales, default=size)
        if small < size:
            raise UserError(f"scales: {small} is below the input size of the model, {size}; leave it out")
        return replace(own, size=size, resize_to=side)

    def sides(self, preprocess: Preprocess) -> tuple[int, ...]:
        """The sides that pictures are resized to."""
        return self.scales or (preprocess.resize_to,)

    def describe(self, preprocess: Preprocess, temperature: float = 1.0) -> str:
        """Views, preprocessing and a temperature other than 1 in words; `preprocess` as this protocol has it."""
        how, size = preprocess.resizing(*self.sides(preprocess)), preprocess.size
        tempered = "" if temperature == 1 else f", temperature {temperature:.4g}"
        if self.kind == "10-crop":
            views = "10 crops (four corners, centre, mirror images; softmax averaged)"
            return f"{views}; {how}, crops of {size}, {preprocess.values}{tempered}"
        if self.kind == "dense":
            views = "dense (logits averaged over windows, softmax over mirror images and scales)"
            return f"{views}; {how}, windows of {size}, {preprocess.values}{tempered}"
        return f"single centre crop; {preprocess}{tempered}"


ONE_CROP = Protocol()


@dataclass
class Outputs:
    """A row for each of the pictures `indices` of the data, and what could not be read."""

    indices: NDArray[np.int64]
    rows: NDArray[Any]
    bad: dict[int, str]


def outputs(
    network: nn.Module, reader: Reader, indices: NDArray[np.int64], answer: Callable[[Tensor], Tensor]
) -> Iterator[Outputs]:
    """What `answer` makes of the network's input, batch by batch, in fp32, on the device where the network is.

    answer   calls the network: (N, C, size, size) to (N, d). The network is left in evaluation mode.
    """
    device = next(network.parameters()).device
    network.eval()
    for batch in evaluation_batches(reader, indices, batch=BATCH):
        if len(batch.indices):
            with torch.inference_mode():
                rows = answer(reader.preprocess.normalise(batch.to(device)[0])).cpu().numpy()
        else:
            rows = np.empty((0, 0))
        yield Outputs(batch.indices, rows, batch.bad)


def tempered(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The softmax of logits / temperature; a temperature of 1 changes no bit."""
    # In double, or a sure and wrong answer would round to a probability of zero.
    return (logits.double() / temperature).softmax(1)


def each_alone(logits: Tensor) -> Tensor:
    """The sigmoid of each logit, where a picture may have several labels."""
    return logits.double().sigmoid()


def probabilities(
    network: ResNet,
    reader: Reader,
    indices: NDArray[np.int64],
    protocol: Protocol = ONE_CROP,
    *,
    shares: Shares = tempered,
) -> Iterator[Outputs]:
    """Probabilities (n, classes), batch by batch; `reader.preprocess` is the model's as the protocol has it.

    shares   logits to probabilities, by default their softmax
    """
    if protocol.kind == "10-crop":
        return crop_probabilities(network, reader, indices, shares)
    if protocol.kind == "dense":
        return dense_probabilities(network, reader, indices, protocol.sides(reader.preprocess), shares)
    return outputs(network, reader, indices, lambda pictures: shares(network(pictures)))


@dataclass(frozen=True)
class Member:
    """One of the models that answer together.

    columns      which of its outputs is each of the first one's; None: each at its own place
    temperature  its own, which its logits are divided by
    multi_label  a picture may have several labels: each has a probability of its own
    """

    network: ResNet
    reader: Reader
    columns: NDArray[np.int64] | None = None
    temperature: float = 1.0
    multi_label: bool = False

    def shares(self, logits: Tensor) -> Tensor:
        """The probabilities of logits (n, classes)."""
        return each_alone(logits) if self.multi_label else tempered(logits, self.temperature)


@dataclass(frozen=True)
class Scoring:
    """How far it is: pictures that the model `member` of `members` has seen."""

    done: int
    total: int
    member: int
    members: int


Progress = Callable[[Scoring], None]


@dataclass(frozen=True, eq=False)
class Answers:
    """Probabilities float64 (n, classes) of the pictures `indices`, in the order asked for, and what was unreadable."""

    indices: NDArray[np.int64]
    table: NDArray[np.float64]
    bad: dict[int, str]


def ask(
    members: Sequence[Member],
    indices: NDArray[np.int64],
    protocol: Protocol = ONE_CROP,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Answers:
    """The mean of the members' probabilities for each of the pictures. Raises UserError when there is none.

    ranks    divide the pictures among them in whole batches, as one process would make them, so that each picture gets
             the same answer to the bit; rank 0 gets all of them, the others none
    """
    step = together(protocol, members[0].reader.preprocess)
    begin, end = (min(step * batches, len(indices)) for batches in ranks.share(-(-len(indices) // step)))
    shown = None if progress is None or not ranks.first else partial(of_all, progress, len(indices), ranks.world)
    parts = ranks.gathered(answers(members, indices[begin:end], protocol, shown))
    if not parts:
        return Answers(indices[:0], np.zeros((0, 0)), {})
    found = parts[0] if len(parts) == 1 else in_a_row(parts)
    if not len(found.indices):
        data, bad = members[0].reader.data, found.bad
        raise UserError(f"{data.spec}: no picture to evaluate" + (f"; {name_bad(data, bad)}" if bad else ""))
    return found


def in_a_row(parts: Sequence[Answers]) -> Answers:
    """The answers of several as one."""
    return Answers(
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.table for part in parts]),
        {index: reason for part in parts for index, reason in part.bad.items()},
    )


def of_all(progress: Progress, total: int, ranks: int, own: Scoring) -> None:
    """Rank 0's progress as that of all of them."""
    progress(replace(own, done=min(total, own.done * ranks), total=total))


def answers(
    members: Sequence[Member], indices: NDArray[np.int64], protocol: Protocol, progress: Progress | None
) -> Answers:
    """`ask` of one process."""
    data = members[0].reader.data
    row = np.full(len(data), -1, dtype=np.int64)
    row[indices] = np.arange(len(indices))
    total = np.zeros((len(indices), len(data.classes)))
    bad: dict[int, str] = {}
    for number, member in enumerate(members, start=1):
        done = 0
        for part in probabilities(member.network, member.reader, indices, protocol, shares=member.shares):
            check_numbers(part, data)
            if len(part.indices):
                total[row[part.indices]] += part.rows if member.columns is None else part.rows[:, member.columns]
            bad |= part.bad
            done += len(part.indices) + len(part.bad)
            if progress is not None:
                progress(Scoring(done, len(indices), number, len(members)))
        assert done == len(indices), "every picture counts once"
    total /= len(members)
    if bad:
        good = np.array([index not in bad for index in indices.tolist()], dtype=bool)
        indices, total = indices[good], total[good]
    return Answers(indices, total, bad)


def check_numbers(part: Outputs, data: Data) -> None:
    """Raise Diverged where a network answers with what is no number."""
    if not np.isfinite(part.rows).all():
        raise Diverged(
            f"{data.spec}: the network answers with what is no number; train it anew with a smaller optim.lr"
        )


def crop_probabilities(
    network: nn.Module, reader: Reader, indices: NDArray[np.int64], shares: Shares = tempered
) -> Iterator[Outputs]:
    """Probabilities averaged over ten crops (n, classes), chunk by chunk."""
    preprocess = reader.preprocess
    count = together(Protocol("10-crop"), preprocess)
    views = partial(five_crops, preprocess=preprocess)
    return averaged(network, reader, indices, views, network, count, shares)


def together(protocol: Protocol, preprocess: Preprocess) -> int:
    """Of how many pictures in a row the views go through the network together."""
    if protocol.kind == "1-crop":
        return BATCH
    pixels = 5 * preprocess.size**2 if protocol.kind == "10-crop" else sum(s**2 for s in protocol.sides(preprocess))
    return max(1, min(BATCH // 2, int(READ / (pixels / preprocess.size**2))))


def dense_probabilities(
    network: ResNet,
    reader: Reader,
    indices: NDArray[np.int64],
    sides: tuple[int, ...],
    shares: Shares = tempered,
) -> Iterator[Outputs]:
    """Probabilities averaged over scales and mirror images (n, classes), chunk by chunk."""
    preprocess = reader.preprocess
    window = map_shape(network, preprocess)

    def views(picture: Pixels) -> list[Pixels]:
        return [whole(picture, preprocess, side) for side in sides]

    count = together(Protocol("dense", sides), preprocess)
    return averaged(network, reader, indices, views, lambda x: dense_logits(network, x, window), count, shares)


def averaged(
    network: nn.Module,
    reader: Reader,
    indices: NDArray[np.int64],
    views: Callable[[Pixels], list[Pixels]],
    answer: Callable[[Tensor], Tensor],
    count: int,
    shares: Shares,
) -> Iterator[Outputs]:
    """The probabilities of `answer`, averaged over the views of a picture and their mirror images, in fp32.

    answer  normalised pictures (N, C, H, W) of one shape to logits (N, classes)
    count   pictures whose views are made at a time
    shares  logits to probabilities
    Views of one shape go through the network together. The network is left in evaluation mode.
    """
    device = next(network.parameters()).device
    area = reader.preprocess.size**2
    network.eval()
    for found, pictures, bad in evaluation_views(reader, indices, count=count, views=views):
        shapes: dict[tuple[int, ...], list[tuple[int, Pixels]]] = defaultdict(list)
        for row, made in enumerate(pictures):
            for view in made:
                shapes[view.shape].append((row, view))
        total: Tensor | None = None
        for (height, width, _), members in shapes.items():
            most = max(1, BATCH * area // (height * width))
            for first in range(0, len(members), most):
                rows, stack = zip(*members[first : first + most], strict=True)
                batch = torch.from_numpy(np.stack(stack)).to(device)
                with torch.inference_mode():
                    # Mirrored before it is normalised: a mean picture is not mirrored in training either.
                    mirrored = (reader.preprocess.normalise(x) for x in (batch, batch.flip(2)))
                    both = [shares(answer(x)) for x in mirrored]
                    if total is None:
                        total = both[0].new_zeros(len(pictures), both[0].shape[1])
                    total.index_add_(0, torch.tensor(rows, device=device), both[0] + both[1])
        number = 2 * len(pictures[0]) if pictures else 1
        yield Outputs(found, np.empty((0, 0)) if total is None else (total / number).cpu().numpy(), bad)


def five_crops(picture: Pixels, preprocess: Preprocess) -> list[Pixels]:
    """The four corners and the centre of the resized picture, each size x size."""
    width, height = preprocess.resized_shape(picture, preprocess.resize_to)
    size, right, bottom = preprocess.size, width - preprocess.size, height - preprocess.size
    places = [(0, 0), (right, 0), (0, bottom), (right, bottom), preprocess.centre_of(width, height)]
    if max(width, height) > LONGEST * min(width, height):
        return [preprocess.window(picture, width, height, left, top) for left, top in places]
    large = resized(picture, width, height, preprocess.filter)
    return [large[top : top + size, left : left + size] for left, top in places]


def whole(picture: Pixels, preprocess: Preprocess, side: int) -> Pixels:
    """The picture resized to `side`; of a longer side above `LONGEST` times the shorter one, its middle."""
    height, width = picture.shape[:2]
    most = LONGEST * min(height, width)
    if preprocess.resize == "shorter" and max(height, width) > most:
        top, left = max(0, height - most) // 2, max(0, width - most) // 2
        picture = picture[top : top + most, left : left + most]
    return resized(picture, *preprocess.resized_shape(picture, side), preprocess.filter)


def map_shape(network: ResNet, preprocess: Preprocess) -> tuple[int, int]:
    """Height and width of the last map for an input of size x size: 7, 7 for 224 and the ImageNet networks."""
    network.eval()
    with torch.inference_mode():
        blank = next(network.parameters()).new_zeros(1, preprocess.channels, preprocess.size, preprocess.size)
        height, width = network.features(blank)[-1].shape[2:]
    return height, width


def dense_logits(network: ResNet, x: Tensor, window: tuple[int, int]) -> Tensor:
    """Logits averaged over all windows of the last map: (N, C, H, W) to (N, classes)."""
    # The dense layer is linear, so the mean of its answers is its answer to the mean.
    pooled = F.avg_pool2d(network.features(x)[-1], window, stride=1)  # (N, channels, h - k + 1, w - k + 1)
    logits: Tensor = network.fc(pooled.mean((2, 3)))
    return logits
