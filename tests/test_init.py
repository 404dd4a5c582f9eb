"""The package's public names: what they are does not depend on what was imported before."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import resnetkit


def test_no_public_name_is_a_module() -> None:
    """Importing a submodule puts it into the package under its name, over a function of that name."""
    modules = {module.name for module in pkgutil.iter_modules(resnetkit.__path__)}
    assert set(resnetkit.__all__) & modules == set()


@pytest.mark.parametrize("before", ["", "import resnetkit.training", "resnetkit.recipes()"])
def test_recipes_can_be_asked_for_at_any_time(before: str) -> None:
    code = f"import resnetkit\n{before}\nprint('small' in resnetkit.recipes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
