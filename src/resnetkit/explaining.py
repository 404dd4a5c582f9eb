"""Where in a picture a network finds what it answers: heat maps, by captum.

grad-cam              the maps of the last stage, weighted by the mean gradient of the class's logit (arXiv 1610.02391)
integrated-gradients  gradients along the straight way from a picture of the mean colour (arXiv 1703.01365)
occlusion             how much less probable the class is where a square of the mean colour lies (arXiv 1311.2901)

All speak of the crop that the network sees, `view`, and only of what speaks for the class. captum is the extra
`explain`; it is imported when a map is made.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from resnetkit.data.pictures import Pixels
from resnetkit.errors import UserError, nearest
from resnetkit.model import ResNet
from resnetkit.weights import ModelFile, open_model

if TYPE_CHECKING:
    from collections.abc import Callable

Heat = NDArray[np.float32]
Method = Literal["grad-cam", "integrated-gradients", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)

STEPS, TOGETHER = 24, 8  # of integrated gradients; pictures that the network sees at a time
WINDOW = 6  # the square that hides a part has a sixth of the side, and moves by half of itself
SMOOTHED = 32  # gradients of single pixels are noise: they are averaged over a square of about this part of the side


def heat_map(
    model: str | os.PathLike[str] | ModelFile,
    picture: bytes | Pixels,
    *,
    of: str | None = None,
    method: Method = "grad-cam",
) -> Heat:
    """How much each place of a picture speaks for a class: float32 (size, size), over the crop that is `view`.

    picture  a file's bytes, or decoded uint8 (H, W, C)
    of       the class; None: the first answer
    Values are from 0 to 1, the most telling place has 1; all are 0 where nothing speaks for the class. Safe from many
    threads at once. Raises BadPicture for what cannot be read; UserError for an unknown class or method, without
    captum, and for an exported file, which has no gradients.
    """
    opened = model if isinstance(model, ModelFile) else open_model(os.fspath(model))
    x = network_input(opened, view(opened, picture))
    target = class_index(opened, of) if of is not None else int(answers(opened, x).argmax())
    return map_of(opened, x, target, method)


def view(model: ModelFile, picture: bytes | Pixels) -> Pixels:
    """The part of a picture that the network sees, as it sees it: uint8 (size, size, C). Raises BadPicture."""
    return model.preprocess.fit(model.preprocess.open(picture))


def network_input(model: ModelFile, seen: Pixels) -> Tensor:
    """The network's input (1, C, size, size), where the network is."""
    device = next(model.network.parameters()).device
    normalised: Tensor = model.preprocess.normalise(torch.from_numpy(seen[None].copy()).to(device))
    return normalised


def answers(model: ModelFile, x: Tensor) -> NDArray[np.float64]:
    """The first picture's probabilities (classes,), with the model's temperature."""
    with torch.inference_mode():
        logits = model.network(x).double() / model.about.temperature
    shares: NDArray[np.float64] = logits.softmax(1)[0].cpu().numpy()
    return shares


def class_index(model: ModelFile, name: str) -> int:
    """The place of a class. Raises UserError with the nearest one's name."""
    if name not in model.classes:
        hint = nearest(name, model.classes)
        raise UserError(f"class {name!r}: the model does not know it{hint}; it knows {len(model.classes):,} classes")
    return model.classes.index(name)


def map_of(model: ModelFile, x: Tensor, target: int, method: Method) -> Heat:
    """The map of an input (1, C, size, size) for the class at `target`; see `heat_map`."""
    if method not in METHODS:
        raise UserError(f"method {method!r}: choose from {', '.join(METHODS)}{nearest(str(method), METHODS)}")
    captum()
    model.network.eval()
    made = MAKERS[method](model.network, x, target)
    speaks = made[0].float().clamp(min=0)
    most = float(speaks.max())
    heat: Heat = (speaks / most if most > 0 else speaks).cpu().numpy().astype(np.float32)
    return heat


def captum() -> Any:
    """captum.attr. Raises UserError where it is not installed."""
    try:
        return import_module("captum.attr")
    except ImportError:
        raise UserError("heat maps need captum: pip install 'resnetkit[explain]'") from None


class Observed(nn.Module):
    """A network whose last maps pass through a layer of its own, so that nothing is hung on the network itself."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.network, self.maps = network, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.maps(self.network.features(x)[-1])
        logits: Tensor = self.network.fc(maps.mean((2, 3)))
        return logits


def grad_cam(network: ResNet, x: Tensor, target: int) -> Tensor:
    """(1, size, size)"""
    observed, attr = Observed(network), captum()
    made = attr.LayerGradCam(observed, observed.maps).attribute(x, target=target, relu_attributions=True)
    enlarged: Tensor = attr.LayerAttribution.interpolate(made.detach(), x.shape[2:], "bilinear")
    return enlarged[:, 0]


def integrated_gradients(network: ResNet, x: Tensor, target: int) -> Tensor:
    """(1, size, size), channels added, smoothed."""
    made = attributions(network, x, target).sum(1, keepdim=True)
    side = 2 * (x.shape[2] // SMOOTHED // 2) + 1
    return F.avg_pool2d(made, side, stride=1, padding=side // 2, count_include_pad=False)[:, 0]


def attributions(network: ResNet, x: Tensor, target: int) -> Tensor:
    """Integrated gradients (1, C, size, size); together they are the logit less that of the mean colour."""
    made: Tensor = (
        captum()
        .IntegratedGradients(network)
        .attribute(x, target=target, n_steps=STEPS, internal_batch_size=TOGETHER)
        .detach()
    )
    return made


def occlusion(network: ResNet, x: Tensor, target: int) -> Tensor:
    """(1, size, size): how much of the class's log-probability goes away with each place."""
    side = max(1, round(x.shape[2] / WINDOW))
    shape, steps = (x.shape[1], side, side), (x.shape[1], max(1, side // 2), max(1, side // 2))

    def log_probability(inputs: Tensor) -> Tensor:
        shares: Tensor = network(inputs).double().log_softmax(1)
        return shares

    with torch.no_grad():
        made: Tensor = (
            captum()
            .Occlusion(log_probability)
            .attribute(x, shape, steps, target=target, perturbations_per_eval=TOGETHER)
        )
    hidden: Tensor = made[:, 0]
    return hidden


MAKERS: dict[Method, Callable[[ResNet, Tensor, int], Tensor]] = {
    "grad-cam": grad_cam,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
}


def overlay(seen: Pixels, heat: Heat) -> Image.Image:
    """A crop (size, size, C) in grey with its map over it; where the map is 0 the picture is untouched grey.

    The colours get lighter as they get stronger, so they can be told apart without colour too.
    """
    from matplotlib import colormaps

    grey = np.asarray(Image.fromarray(seen.squeeze()).convert("L"), dtype=np.float32)[:, :, None]
    colours = 255 * colormaps["inferno"](0.25 + 0.75 * heat)[:, :, :3].astype(np.float32)
    strength = 0.75 * np.sqrt(heat)[:, :, None]
    mixed = (1 - strength) * (0.85 * grey) + strength * colours
    return Image.fromarray(np.clip(mixed, 0, 255).round().astype(np.uint8))


THIRDS = (("upper left", "top", "upper right"), ("left", "middle", "right"), ("lower left", "bottom", "lower right"))


def in_words(heat: Heat) -> str:
    """Where a map is, for those who do not see it: `"52 % of it in the middle, 20 % at the top"`."""
    total = float(heat.sum())
    if total == 0:
        return "nothing in the picture speaks for it"
    cells = [
        (float(part.sum()) / total, THIRDS[row][column])
        for row, band in enumerate(np.array_split(heat, 3, axis=0))
        for column, part in enumerate(np.array_split(band, 3, axis=1))
    ]
    first, second = sorted(cells, reverse=True)[:2]
    return f"{100 * first[0]:.0f} % of it {preposition(first[1])}, {100 * second[0]:.0f} % {preposition(second[1])}"


def preposition(place: str) -> str:
    return f"{'at' if place in ('top', 'bottom') else 'on' if place in ('left', 'right') else 'in'} the {place}"
