"""Peers for tests to compare with, torchvision, timm and transformers: imported, or the test skipped with a reason.

torchvision's compiled operators fit the torch they were built with. Beside another torch, such as the CPU build, its
Python side still asks while it is imported for operators that nobody defined. Its transforms and models need none of
them, so their names are declared first, without a body: calling one is an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch


def peer(name: str) -> ModuleType:
    """A peer's module, such as "timm.data"; without the peer the test, or the whole file, is skipped."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (make peers)", allow_module_level=True)
    declare_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer says of itself while it loads is its own; what tests call is not
        return importlib.import_module(name)


@cache
def declare_operators() -> torch.library.Library | None:
    """Declare the operators that torchvision's Python side names; the result keeps them declared."""
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    source = (Path(found.origin).parent / "_meta_registrations.py").read_text(encoding="utf-8")
    names = set(re.findall(r'register_meta\("(\w+)"', source)) | set(re.findall(r"torchvision::(\w+)", source))
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(names):
        if not hasattr(torch.ops.torchvision, name):  # a torchvision that fits has them
            library.define(f"{name}(Tensor x) -> Tensor")
    return library
