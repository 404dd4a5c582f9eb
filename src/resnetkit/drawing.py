"""What our pages have in common: the template engine, and charts as SVG that follow the page's colours.

Charts are matplotlib's SVG with text left as text. They are drawn in stand-in colours that are then replaced by the
page's CSS variables, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, TRAIN, HELD, RIGHT, WRONG = (f"#00000{digit}" for digit in "123456")
PAGE_COLOURS = {
    INK: "currentColor",
    FAINT: "var(--line)",
    TRAIN: "var(--train)",
    HELD: "var(--held)",
    RIGHT: "var(--right)",
    WRONG: "var(--wrong)",
}
RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "resnetkit",  # else identifiers are random, and the same run would give other bytes
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: text is laid out alike everywhere
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.parse_math": False,  # a class may be called "$5"
}
NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # what HTML cannot hold; half of it is bytes of names


@dataclass(frozen=True)
class Chart:
    """An SVG element and the sentence that says what is to be seen in it."""

    title: str
    message: str
    svg: str


def render(template: str, **values: Any) -> str:
    """A page from its template; every value is escaped but the charts, which are markup of our own."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["number"] = "{:,}".format
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]  # what is in capitals stays so
    return environment.get_template(template).render(**values)


def percent(share: float, digits: int = 2) -> str:
    """`"93.21 %"`, not broken across lines."""
    return f"{100 * share:.{digits}f}\u00a0%"


def plain(text: str) -> str:
    """The text with replacement characters for bytes that are not UTF-8 and for control characters."""
    return NOT_TEXT.sub("\ufffd", text)


def svg(figure: Figure, name: str, message: str, *, crop: bool = False) -> str:
    """A figure as an SVG element to stand inside a page, with `message` for those who cannot see it.

    `crop` makes the drawing as large as what is on it.
    """
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "glyph missing": the browser's fonts have it, and text stays text
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            bbox_inches="tight" if crop else None,
            pad_inches=0.03,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    head, _, body = file.getvalue().partition("<svg")[2].partition(">")
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None, "matplotlib gives the size of its drawing"
    width = float(box[1].split()[2])
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]+>", lambda tag: for_page(tag[0], name), body)  # tags alone: names stay as they are
    style = f"--natural: {width:.0f}px"
    return f'<svg class="{name}" role="img" aria-label="{escape(message)}" viewBox="{box[1]}" style="{style}">{body}'


def for_page(tag: str, name: str) -> str:
    """A tag of a chart with the page's colours and font, and with identifiers that no other chart uses."""
    tag = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", tag)
    tag = re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", tag.replace("xlink:href", "href"))
    for colour, on_page in PAGE_COLOURS.items():
        tag = tag.replace(colour, on_page)
    return tag
