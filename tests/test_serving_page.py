"""The page at / in a real browser, and what it is allowed to do there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs resnetkit[serve]")
pytest.importorskip("selenium", reason="needs selenium")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from prediction_samples import CLASSES
from resnetkit.prediction import load
from resnetkit.serving.limits import Limits
from resnetkit.serving.running import Asked, open_server
from serving_samples import Running, model_file, png, serving

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and its chromedriver")
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1000,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    """Two models: one whose threshold no answer reaches, and one without any; and heat maps that are a picture."""
    unsure = model_file(folder / "unsure.safetensors", calibration={"temperature": 1.0, "threshold": 0.9999})
    pets = model_file(folder / "pets.safetensors")
    lines: list[str] = []
    heat = png(folder, 99)
    asked = Asked((str(pets), str(unsure)), port=0, engine="torch", limits=Limits(drain=0.0))
    with serving(open_server(asked, lines.append, lines.append, lambda *_: heat), lines) as running:
        yield running


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    browser.get(f"http://127.0.0.1:{server.port}/")
    until(browser, lambda _: browser.find_element(By.ID, "give").is_displayed())
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def until(browser: Any, condition: Callable[[Any], Any]) -> Any:
    return WebDriverWait(browser, 20, poll_frequency=0.02).until(condition)


def answered(page: Any, n: int) -> list[Any]:
    until(page, lambda _: page.find_element(By.ID, "status").text == f"{n} answered")
    found: list[Any] = page.find_elements(By.CSS_SELECTOR, "#results > li")
    return found


def text(card: Any, selector: str) -> str:
    found: str = card.find_element(By.CSS_SELECTOR, selector).text
    return found


def test_chosen_pictures_get_the_answers_of_predict(page: Any, folder: Path) -> None:
    for seed in range(2):
        png(folder, seed)
    (folder / "bad.png").write_bytes(b"no picture at all")
    paths = [folder / name for name in ("0.png", "1.png", "bad.png")]
    page.find_element(By.ID, "files").send_keys("\n".join(map(str, paths)))
    cards = answered(page, 3)
    assert [text(card, ".name") for card in cards] == ["0.png", "1.png", "bad.png"]
    assert "not a picture" in text(cards[2], ".answer.error")
    assert cards[2].find_elements(By.CSS_SELECTOR, ".bars li") == []
    for card, want in zip(cards[:2], load(folder / "pets.safetensors").predict(paths[:2], engine="torch"), strict=True):
        assert text(card, ".answer") == want.answer
        rows = [row.text.split("\n") for row in card.find_elements(By.CSS_SELECTOR, ".bars li")]
        assert rows == [[name, f"{100 * share:.1f} %"] for name, share in want.top]
        widths = [bar.get_attribute("style") for bar in card.find_elements(By.CSS_SELECTOR, ".bars i")]
        shares = [float(width.removeprefix("width: ").removesuffix("%;")) / 100 for width in widths]
        assert shares == pytest.approx([share for _, share in want.top], rel=1e-3)


MAKE = """
const canvas = document.createElement("canvas"), done = arguments[0], kind = arguments[1];
canvas.width = canvas.height = 20;
canvas.getContext("2d").fillRect(3, 3, 9, 9);
canvas.toBlob((blob) => {
  const given = new DataTransfer();
  given.items.add(new File([blob], kind + ".png", { type: "image/png" }));
  const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: given, cancelable: true })
                                : new ClipboardEvent("paste", { clipboardData: given });
  document.dispatchEvent(event);
  done(event.defaultPrevented);
});
"""


def test_pictures_are_dropped_and_pasted(page: Any) -> None:
    assert page.execute_async_script(f"const give = arguments[0]; (function () {{ {MAKE} }})(give, 'drop')") is True
    page.execute_async_script(f"const give = arguments[0]; (function () {{ {MAKE} }})(give, 'paste')")
    cards = answered(page, 2)
    assert [text(card, ".name") for card in cards] == ["paste.png", "drop.png"]
    assert {text(card, ".answer") for card in cards} <= set(CLASSES)


def test_what_comes_before_the_models_are_known_waits(page: Any) -> None:
    page.execute_script("models = [];")
    page.execute_async_script(f"const give = arguments[0]; (function () {{ {MAKE} }})(give, 'drop')")
    until(page, lambda _: page.find_element(By.ID, "status").text == "0 of 1 answered")
    page.execute_script("begin();")
    (card,) = answered(page, 1)
    assert text(card, ".answer") in CLASSES


def test_a_model_that_is_not_sure_says_so(page: Any, folder: Path) -> None:
    page.find_element(By.CSS_SELECTOR, "#model").send_keys("unsure")
    until(page, lambda _: "Below > 99.9 % it is not sure" in page.find_element(By.ID, "about").text)
    png(folder)
    page.find_element(By.ID, "camera").send_keys(str(folder / "0.png"))
    (card,) = answered(page, 1)
    assert text(card, ".answer").startswith("not sure")
    assert len(card.find_elements(By.CSS_SELECTOR, ".bars li")) == 5


def test_heat_maps_come_when_they_are_asked_for(page: Any, folder: Path) -> None:
    png(folder)
    page.find_element(By.ID, "files").send_keys(str(folder / "0.png"))
    (card,) = answered(page, 1)
    heat, button = (card.find_element(By.CSS_SELECTOR, name) for name in (".heat", ".why"))
    assert not heat.is_displayed()
    button.click()
    until(page, lambda _: heat.is_displayed())
    until(page, lambda _: page.execute_script("return arguments[0].naturalWidth", heat) == 17)
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    until(page, lambda _: not heat.is_displayed())


def test_the_python_lines_and_the_shell_line_work_as_they_stand(page: Any, folder: Path) -> None:
    png(folder)
    (folder / "picture.jpg").write_bytes((folder / "0.png").read_bytes())
    (want,) = load(folder / "pets.safetensors").predict([folder / "0.png"], engine="torch")
    code = page.find_element(By.ID, "python").text
    said = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert f"'class': '{want.answer}'" in said
    line = page.find_element(By.ID, "curl").text
    if shutil.which("curl"):
        said = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout
        assert f'"class":"{want.answer}"' in said
    button = page.find_element(By.CSS_SELECTOR, "[data-copy=curl]")
    button.click()
    until(page, lambda _: button.text.split("\n")[0].startswith(("Copied", "Selected")))


def test_everything_is_reached_by_keyboard(page: Any) -> None:
    reached = []
    for _ in range(9):
        ActionChains(page).send_keys(Keys.TAB).perform()
        focus = page.switch_to.active_element
        reached.append(focus.get_attribute("id") or focus.get_attribute("data-copy") or focus.tag_name)
    assert reached[:8] == ["model", "files", "camera", "curl", "curl", "python", "python", "a"]


def test_it_fits_a_phone_and_the_dark(page: Any, folder: Path) -> None:
    png(folder)
    (folder / f"{'long-name-' * 12}.png").write_bytes((folder / "0.png").read_bytes())
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        page.find_element(By.ID, "files").send_keys(str(folder / f"{'long-name-' * 12}.png"))
        answered(page, 1)
        assert page.execute_script("return document.documentElement.scrollWidth") == 360
        colours = []
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            colours.append(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
        assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_nothing_but_the_server_is_asked_and_nothing_inline_runs(page: Any, server: Running) -> None:
    origin = f"http://127.0.0.1:{server.port}/"
    loaded = page.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert {f"{origin}static/serve.js", f"{origin}static/serve.css"} <= set(loaded)
    assert [name for name in loaded if not name.startswith(origin)] == []
    page.execute_script(
        "window.ran = false; const s = document.createElement('script'); s.textContent = 'window.ran = true';"
        "document.body.append(s)"
    )
    assert page.execute_script("return window.ran") is False
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_a_token_is_asked_for(browser: Any, folder: Path) -> None:
    pets = model_file(folder / "pets.safetensors")
    asked = Asked((str(pets),), port=0, engine="torch", token=TOKEN, limits=Limits(drain=0.0))
    with serving(open_server(asked, lambda _: None, lambda _: None)) as running:
        browser.get(f"http://127.0.0.1:{running.port}/")
        until(browser, lambda _: browser.find_element(By.ID, "gate").is_displayed())
        browser.find_element(By.ID, "token").send_keys("wrong", Keys.ENTER)
        until(browser, lambda _: browser.find_element(By.ID, "gate-error").text == "That is not the token.")
        browser.find_element(By.ID, "token").clear()
        browser.find_element(By.ID, "token").send_keys(TOKEN, Keys.ENTER)
        until(browser, lambda _: browser.find_element(By.ID, "give").is_displayed())
        assert "Bearer $TOKEN" in browser.find_element(By.ID, "curl").text
        assert TOKEN not in browser.page_source
        png(folder)
        browser.find_element(By.ID, "files").send_keys(str(folder / "0.png"))
        answered(browser, 1)
        browser.get("about:blank")  # an open connection would be waited for
    browser.get_log("browser")
