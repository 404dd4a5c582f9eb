"""The extension; all else stands in pyproject.toml."""

import tomllib
from pathlib import Path

from setuptools import Extension, setup

VERSION = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

setup(
    packages=[],
    ext_modules=[
        Extension(
            "resnetkit_native",
            sources=["src/module.c", "src/crop.c", "src/triangle.c"],
            depends=["src/crop.h", "src/triangle.h"],
            define_macros=[("VERSION", f'"{VERSION}"')],
            libraries=["jpeg", "m"],
            extra_compile_args=["-O3", "-std=c11", "-Wall", "-Wextra"],
            py_limited_api=True,
        )
    ],
)
