"""Our pages in a real browser, at the width of a telephone and of a desktop: nothing is wrong, nothing sticks out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import resnetkit
from prediction_samples import make_model, picture
from resnetkit import check_page, explain_page
from resnetkit.checking import check
from resnetkit.recipe_file import with_settings
from resnetkit.reporting import report
from resnetkit.shipped import shipped

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = {"phone": 360, "desktop": 1280}
LONG = "a-class-with-a-name-that-is-far-too-long-for-the-column-it-stands-in"

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'resnetkit[dev]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; on Debian: apt-get install chromium"),
]

# An element that is wider than the window though nothing lets it scroll.
STICKING_OUT = """() => [...document.querySelectorAll('body *')].filter(e => {
    if (e.closest('.scroll, pre, svg')) return false;
    return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(e => e.tagName + ' ' + e.className).slice(0, 5)"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind, of real work on small pictures."""
    folder, dice = tmp_path_factory.mktemp("pages"), np.random.default_rng(0)
    for split, many in (("train", 8), ("val", 6)):
        for label, name in enumerate(("ant", LONG)):
            for i in range(many):
                path = folder / "photos" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = dice.normal(60 + 60 * label, 40, (16, 16, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    shutil.copy(folder / "photos/train/ant/0.png", folder / "photos/val/ant/copy.png")
    tiny = ("model.arch=resnet8-cifar", "data.size=8", "schedule.steps=2", "optim.batch=4", "run.threads=1")
    runs = [
        resnetkit.train(
            folder / "photos", recipe=with_settings(shipped("small"), [*tiny, f"run.seed={seed}"]), out=folder / name
        ).run
        for seed, name in enumerate(("one", "other"))
    ]
    made = {"report": report(runs[0], against=runs[1]).page}
    found = check(folder / "photos")
    made["check"] = check_page.write_check(found, check_page.target(folder / "check.html", folder / "photos"))[0]
    if explained := pages_of_explain(folder):
        made["explain"] = explained
    return made


def pages_of_explain(folder: Path) -> Path | None:
    try:
        import captum  # noqa: F401
    except ImportError:
        return None
    found = explain_page.explain(make_model(), [picture(folder / f"{LONG}{i}.png", seed=i) for i in range(2)])
    explain_page.write_page(found, folder / "why.html")
    return folder / "why.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("kind", ["report", "check", "explain"])
def test_pages_in_the_browser(browser: Any, pages: dict[str, Path], kind: str, tmp_path: Path) -> None:
    if kind not in pages:
        pytest.skip("needs captum, the extra 'explain'")
    for width in WIDTHS.values():
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page, wrong, asked = context.new_page(), [], []
            page.on("console", lambda message, wrong=wrong: wrong.append(message.text))
            page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(pages[kind].as_uri())
            assert wrong == []
            assert [url for url in asked if not url.startswith(("file:", "data:"))] == [], "it needs no network"
            assert page.evaluate(STICKING_OUT) == []
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            lightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
            assert (lightness > 200) == (scheme == "light")
            context.close()
    page = browser.new_page()
    page.goto(pages[kind].as_uri())
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length"
    assert page.evaluate(broken) == 0
    missing = "[...document.querySelectorAll('nav a')].filter(a => !document.getElementById(a.hash.slice(1))).length"
    assert page.evaluate(missing) == 0
    unlabelled = "[...document.querySelectorAll('section')].filter(s => !s.getAttribute('aria-labelledby')).length"
    assert page.evaluate(unlabelled) == 0
    repeated = (
        "document.querySelectorAll('[id]').length - new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size"
    )
    assert page.evaluate(repeated) == 0
    if page.locator("a").count():
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") in ("A", "DIV", "SUMMARY", "PRE")
    printed = page.pdf(path=str(tmp_path / "page.pdf"))
    assert printed.startswith(b"%PDF")
    page.close()
