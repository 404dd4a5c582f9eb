"""README and docs: the figures are those of results/, the commands exist, the Python runs, the links lead somewhere."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

import resnetkit
from resnetkit.cli import root
from resnetkit.recipe_file import loads, with_settings
from resnetkit.shipped import recipes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `resnet …` in an indented block."""
    found = []
    for name, text in TEXT.items():
        joined = re.sub(r"\s*\\\n\s*", " ", text)
        found += [(name, line.strip()) for line in re.findall(r"^    (resnet .*)$", joined, flags=re.MULTILINE)]
    return found


def test_figures_are_those_of_the_results() -> None:
    command = [sys.executable, ROOT / "docs" / "figures.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_exist(page: str, line: str) -> None:
    del page
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = root
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)


def test_there_are_commands() -> None:
    assert {"README.md", "docs/recipes.md"} <= {name for name, _ in commands()}


@pytest.mark.parametrize("name", TEXT)
def test_links_lead_to_files(name: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT[name])
    assert [target for target in targets if not ((ROOT / name).parent / target).exists()] == []


def test_the_makefile_has_what_the_readme_says() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", "\n".join(TEXT.values()), flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_toml_of_the_docs_is_a_recipe() -> None:
    text = TEXT["docs/recipes.md"]
    lines = text[text.index("    base = ") :].splitlines()
    example = itertools.takewhile(lambda line: not line or line.startswith("    "), lines)
    recipe = loads("\n".join(line.strip() for line in example), where="docs", bases=recipes())
    assert (recipe.optim.lr, recipe.augment.mixup) == (0.05, 0.2)


def test_the_python_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """README's block trains, then that of docs/model-file.md reads the model, on a few pictures and for one epoch."""
    monkeypatch.chdir(tmp_path)
    dice = np.random.Generator(np.random.Philox(0))
    for split, count in (("train", 7), ("val", 1)):
        for digit in range(10):
            folder = Path("runs/demo-pictures") / split / str(digit)
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(dice.integers(256, size=(8, 8), dtype=np.uint8)).save(folder / f"{number}.png")
    short = with_settings(recipes()["digits"], ["schedule.epochs=1", "model.arch=resnet8-cifar"])
    monkeypatch.setattr(resnetkit, "recipes", lambda: {"digits": short}, raising=False)
    (readme,) = re.findall(r"```python\n(.*?)```", TEXT["README.md"], flags=re.DOTALL)
    exec(compile(readme, "README.md", "exec"), {})
    assert "runs/demo-pictures/val/7/0.png" in capsys.readouterr().out
    (model,) = re.findall(r"```python\n(.*?)```", TEXT["docs/model-file.md"], flags=re.DOTALL)
    monkeypatch.chdir(tmp_path / "runs" / "mine")
    exec(compile(model, "docs/model-file.md", "exec"), {})
    assert "('0', '1'" in capsys.readouterr().out.replace("[", "(")
