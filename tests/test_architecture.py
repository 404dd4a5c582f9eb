"""The shape of the source: which way imports run, how long things are, who prints, what reads the recipe.

The rows of modules are those of docs/design.md; a module must stand in that table before this test lets it in.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest

from resnetkit.recipe import Recipe

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "resnetkit"
FILE_LINES, FUNCTION_LINES = 400, 60
BUDGETS: dict[str, int] = {}  # each entry is a decision

# Beside the table: the root re-exports lazily and may name anything, `python -m resnetkit` calls the command line,
# and those of data/, engines/, paper/, peers/ and serving/ hold their docstrings.
SPECIAL = {"": 100, "__main__": 100, "data": 0, "engines": 0, "paper": 0, "peers": 0, "serving": 0}
# Imports within a row, each with its reason.
WITHIN_A_ROW: dict[tuple[str, str], str] = {}
# Modules that may be lifted out or loaded early: what they import beside the standard library and resnetkit.
THIRD_PARTY: dict[str, set[str]] = {
    "": set(),
    "recipe": set(),
    "errors": set(),
    "version": set(),
    "recipe_file": set(),
    "model": {"torch"},
    "lamb": {"torch"},
}
PRINTERS = {"cli", "cli_recipe", "cli_paper", "shell", "terminal"}


def module_name(path: Path) -> str:
    """`data.folder` for src/resnetkit/data/folder.py; a package's own file has the package's name, "" is the root."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


@cache
def trees() -> dict[str, ast.Module]:
    return {module_name(path): ast.parse(path.read_bytes()) for path in sorted(PACKAGE.rglob("*.py"))}


def table_rows() -> dict[str, int]:
    """Module to row, read off the table in docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", text, flags=re.MULTILINE)
    named = [(name, int(row)) for row, cell in rows for name in re.findall(r"`([\w.]+)`", cell)]
    assert len(named) == len(dict(named)), "docs/design.md names a module twice"
    assert named, "docs/design.md has no table of modules"
    return dict(named) | SPECIAL


def imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """What of resnetkit a module imports, anywhere in it: module names, "" for the package root."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; name the module in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            names = [node.args[0].value] if isinstance(node.args[0], ast.Constant) else []
        else:
            continue
        for name in names:
            parts = str(name).split(".")
            while parts[0] == "resnetkit" and parts[1:] and ".".join(parts[1:]) not in known:
                parts.pop()  # the name of a function or class: what is left is the module that owns it
            if parts[0] == "resnetkit":
                yield ".".join(parts[1:])


def edges() -> dict[str, set[str]]:
    return {name: set(imported(tree, set(trees()))) - {name} for name, tree in trees().items()}


def path_back(graph: dict[str, set[str]], start: str) -> list[str]:
    """A way from `start` along imports back to it, or an empty list."""
    ways = [[start]]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for target in graph.get(way[-1], ()):
            if target == start:
                return [*way, target]
            if target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


def python_files() -> list[Path]:
    return sorted(path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def test_every_module_stands_in_the_table() -> None:
    assert sorted(set(trees()) - set(table_rows())) == []


def test_imports_run_downwards() -> None:
    rows = table_rows()
    wrong = [
        f"{name} (row {rows[name]}) imports {target} (row {rows[target]})"
        for name, targets in edges().items()
        for target in sorted(targets)
        if name in rows and target in rows and rows[target] >= rows[name] and (name, target) not in WITHIN_A_ROW
    ]
    assert wrong == []


def test_the_exceptions_are_needed() -> None:
    """An exception whose two modules exist, but not the import, is litter; one between two rows is none."""
    graph, rows = edges(), table_rows()
    assert [pair for pair in WITHIN_A_ROW if set(pair) <= set(graph) and pair[1] not in graph[pair[0]]] == []
    assert [pair for pair in WITHIN_A_ROW if rows.get(pair[0]) != rows.get(pair[1])] == []


def test_no_import_leads_back() -> None:
    graph = edges()
    assert [" -> ".join(way) for name in graph if (way := path_back(graph, name))] == []


def test_no_module_imports_the_package_root() -> None:
    assert [name for name, targets in edges().items() if "" in targets] == []


@pytest.mark.parametrize("name", sorted(THIRD_PARTY))
def test_light_modules_stay_light(name: str) -> None:
    """Nothing but the standard library and what the table allows, not even inside a function."""
    found = set()
    for node in ast.walk(trees().get(name, ast.Module([], []))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    assert found - set(sys.stdlib_module_names) - {"resnetkit"} <= THIRD_PARTY[name]


def test_the_model_can_be_lifted_out() -> None:
    assert edges()["model"] == set()


def test_files_and_functions_fit_their_budgets() -> None:
    long, used = [], set()
    for path in python_files():
        text, where = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        sizes = {where: (len(text.splitlines()), FILE_LINES)}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes[f"{where}::{node.name}"] = ((node.end_lineno or 0) - node.lineno + 1, FUNCTION_LINES)
        for what, (lines, budget) in sizes.items():
            if lines > BUDGETS.get(what, budget):
                long.append(f"{what}: {lines} lines, budget {BUDGETS.get(what, budget)}")
            elif lines > budget:
                used.add(what)
    assert long == []
    assert set(BUDGETS) - used == set(), "a budget nobody needs any more"


def test_only_the_command_line_prints() -> None:
    printing = [
        f"{name}, line {node.lineno}"
        for name, tree in trees().items()
        if name not in PRINTERS
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"))
    ]
    assert printing == []


def recipe_keys() -> Iterator[str]:
    for key, kind in get_type_hints(Recipe).items():
        yield from [f"{key}.{field.name}" for field in fields(kind)] if is_dataclass(kind) else [key]


def test_code_reads_every_recipe_key() -> None:
    """Each leaf is somewhere read as an attribute by a module that does more than load and store recipes."""
    read = {
        node.attr
        for name, tree in trees().items()
        if name not in ("recipe", "recipe_file")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert [key for key in recipe_keys() if key.rpartition(".")[2] not in read] == []
