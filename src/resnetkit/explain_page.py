"""Why a model answers as it does, picture by picture, and the page that shows it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from resnetkit.atomic import write_text
from resnetkit.counterfactual import CONTROLS, GRID, Change, change
from resnetkit.data.pictures import Pixels
from resnetkit.data.transforms import Preprocess
from resnetkit.drawing import plain, render
from resnetkit.errors import UserError
from resnetkit.explaining import METHODS, Heat, Method, answers, captum, class_index, in_words, map_of, network_input
from resnetkit.explaining import overlay as over
from resnetkit.prediction import fill, picture_files
from resnetkit.report import TINY, data_uri
from resnetkit.version import __version__
from resnetkit.weights import ModelFile, open_model, place

MOST = 50  # pictures of a page, which stays below 5 MB
LARGEST, TOP = 256, 5  # side of what is shown, pixels; classes named for each picture

TITLES = {
    "grad-cam": ("Grad-CAM", "which places of the last stage speak for it; coarse"),
    "integrated-gradients": ("Integrated gradients", "which pixels speak for it, from a picture of the mean colour on"),
    "occlusion": ("Occlusion", "where a covering square costs it the most"),
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Explanation:
    """One picture: what the network sees and answers, maps for the class `of`, and what would change its mind.

    top   the first classes with their probabilities
    seen  uint8 (size, size, C); maps float32 (size, size)
    """

    path: str
    of: str
    probability: float  # of `of`
    top: tuple[tuple[str, float], ...]
    seen: Pixels
    maps: dict[Method, Heat]
    change: Change

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; of each map, where it is in words."""
        top = [{"class": name, "probability": share} for name, share in self.top]
        words = {method: in_words(heat) for method, heat in self.maps.items()}
        about = {"path": self.path, "of": self.of, "probability": self.probability, "top": top}
        return {**about, "maps": words, "change": {**vars(self.change), "share": self.change.share}}


@dataclass(frozen=True, eq=False)
class Explained:
    """The pictures that could be read, in order; the others, path to reason."""

    model: str
    pictures: tuple[Explanation, ...]
    bad: dict[str, str]
    preprocess: Preprocess


def explain(
    model: str | os.PathLike[str] | ModelFile,
    paths: str | Path | Iterable[str | Path],
    *,
    of: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Explained:
    """Why a model answers as it does on pictures: files as they are given, folders walked; 50 at most.

    of        the class that the maps speak of; None: each picture's own answer
    progress  is called with how many pictures are done and how many there are
    The answers are those of torch in fp32. A picture that cannot be read stands in `bad`. Raises UserError for a path
    that does not exist, an unknown class, and without captum.
    """
    captum()
    opened = model if isinstance(model, ModelFile) else open_model(os.fspath(model))
    given = [paths] if isinstance(paths, str | Path) else paths
    names = [name for path in given for name in picture_files(os.fspath(path))]
    if len(names) > MOST:
        raise UserError(f"{len(names):,} pictures: a page holds {MOST}; name fewer")
    target = None if of is None else class_index(opened, of)
    place(opened.network, torch.device(device))
    found, bad = [], {}
    for number, name in enumerate(names, start=1):
        seen = np.empty((opened.preprocess.size, opened.preprocess.size, opened.preprocess.channels), np.uint8)
        reason = fill(seen, name, opened.preprocess)
        if reason is None:
            found.append(explained(opened, name, seen, target))
        else:
            bad[name] = reason
        if progress is not None:
            progress(number, len(names))
    shown = opened.network.arch.name if isinstance(model, ModelFile) else os.fspath(model)
    return Explained(shown, tuple(found), bad, opened.preprocess)


def explained(model: ModelFile, name: str, seen: Pixels, target: int | None) -> Explanation:
    """One picture's explanation; see `explain`."""
    x = network_input(model, seen)
    shares = answers(model, x)
    first = np.argsort(-shares, kind="stable")[:TOP].tolist()
    chosen = first[0] if target is None else target
    return Explanation(
        name,
        model.classes[chosen],
        float(shares[chosen]),
        tuple((model.classes[i], float(shares[i])) for i in first),
        seen,
        {method: map_of(model, x, chosen, method) for method in METHODS},
        change(model, x),
    )


def check_target(out: str | Path) -> Path:
    """The page's path. Raises UserError, before any work, where it cannot be made."""
    path = Path(out)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path}: a page is written; give the name the ending .html")
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; choose another name")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first, or choose another place")
    return path


def write_page(found: Explained, out: Path) -> None:
    """Write the page, one file that needs no network. Raises UserError where it cannot be written."""
    try:
        write_text(out, plain(page(found)))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place or make room") from None


def page(found: Explained) -> str:
    """The page as HTML."""
    return render(
        "explain.html",
        found=found,
        pictures=[(each, figures(each), hidden(each, found.preprocess.blank)) for each in found.pictures],
        grid=GRID**2,
        controls=CONTROLS,
        version=__version__,
    )


@dataclass(frozen=True)
class Figure:
    """A picture on the page; `words` say what is to be seen in it."""

    title: str
    what: str
    words: str
    uri: str
    tiny: bool  # so small that its pixels are shown


def figures(each: Explanation) -> list[Figure]:
    """The crop, and the crop under each of the maps."""
    own = f"what the network sees of {each.path}"
    made = [figure("What it sees", "the crop, in the size in which it is looked at", own, unsqueezed(each.seen))]
    for method, heat in each.maps.items():
        title, what = TITLES[method]
        words = f"{title} for {each.of}: {in_words(heat)}"
        made.append(figure(title, what, words, over(each.seen, heat)))
    return made


def figure(title: str, what: str, words: str, image: Image.Image) -> Figure:
    tiny = max(image.size) <= TINY
    image.thumbnail((LARGEST, LARGEST))
    return Figure(title, what, words, data_uri(image), tiny)


def unsqueezed(seen: Pixels) -> Image.Image:
    """A crop as a picture; one of one channel in grey."""
    return Image.fromarray(seen[:, :, 0] if seen.shape[2] == 1 else seen)


def hidden(each: Explanation, blank: Pixels) -> Figure | None:
    """The crop with the cells covered that change the answer; None where none do."""
    if not each.change.cells:
        return None
    pixels, side = each.seen.copy(), len(each.seen)
    for row, column in each.change.cells:
        top, bottom, left, right = (side * k // GRID for k in (row, row + 1, column, column + 1))
        pixels[top:bottom, left:right] = blank[top:bottom, left:right]
    words = f"{each.path} with {len(each.change.cells)} of {GRID**2} cells covered"
    return figure("Covered", f"then it says {each.change.becomes}", words, unsqueezed(pixels))
