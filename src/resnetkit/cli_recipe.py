"""`resnet recipe …`, and the recipe that the options of `resnet train` ask for. Starts without torch and numpy."""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import click

from resnetkit.errors import UserError
from resnetkit.recipe import Recipe
from resnetkit.shell import Commands, emit, json_option
from resnetkit.terminal import shown


@click.group(
    cls=Commands,
    epilog="""\b
Example:
  resnet recipe copy small my.toml        then change it, and
  resnet train photos/ --recipe my.toml""",
)
def recipe() -> None:
    """The shipped ways to train, and your own ones."""


@recipe.command(
    "list",
    epilog="""\b
Example:
  resnet recipe list""",
)
@json_option
def list_recipes(as_json: bool) -> None:
    """Name the shipped recipes."""
    from resnetkit.shipped import contract, recipes

    about = {name: contract(name).splitlines()[0] for name in recipes()}
    if as_json:
        emit({"recipes": [{"name": name, "about": text} for name, text in about.items()]})
    else:
        formatter = click.HelpFormatter(width=min(80, shutil.get_terminal_size().columns))
        formatter.write_dl(list(about.items()))
        print(inspect.cleandoc(formatter.getvalue()))


@recipe.command(
    "show",
    short_help="Print a shipped recipe as TOML.",
    epilog="""\b
Example:
  resnet recipe show small""",
)
@click.argument("name")
@json_option
def show_recipe(name: str, as_json: bool) -> None:
    """Print the shipped recipe NAME: what it is for, and all its keys as TOML with what each may be."""
    from resnetkit.recipe_file import to_dict
    from resnetkit.shipped import contract, shipped

    found = shipped(name)
    if as_json:
        emit({"name": name, "about": contract(name), "recipe": to_dict(found)})
    else:
        print(as_toml(name), end="")


@recipe.command(
    "copy",
    short_help="Write a shipped recipe to a file of your own.",
    epilog="""\b
Example:
  resnet recipe copy small my.toml""",
)
@click.argument("name")
@click.argument("file")
def copy_recipe(name: str, file: str) -> None:
    """Write the shipped recipe NAME to FILE, a .toml file to change and give to train --recipe."""
    from resnetkit.atomic import write_text

    text = as_toml(name)
    if not file.endswith(".toml"):
        raise UserError(f"{file}: a recipe file ends in .toml, so that --recipe knows it from a name")
    if os.path.lexists(file):
        raise UserError(f"{file}: exists already; choose another name")
    try:
        write_text(Path(file), text)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another place") from None
    print(f"{shown(file)}: written; use it with: resnet train DATA --recipe {shlex.quote(shown(file))}")


def as_toml(name: str) -> str:
    """A shipped recipe as a file: its contract as comments, then every key."""
    from resnetkit.recipe_file import dumps
    from resnetkit.shipped import contract, shipped

    text = dumps(shipped(name))
    return "".join(f"# {line}".rstrip() + "\n" for line in contract(name).splitlines()) + "\n" + text


@recipe.command(
    "check",
    short_help="Look for mistakes in a recipe file.",
    epilog="""\b
Example:
  resnet recipe check my.toml""",
)
@click.argument("file")
def check_recipe(file: str) -> None:
    """Say whether FILE, a recipe as TOML, has a mistake, and what it changes."""
    from resnetkit.recipe_file import load, to_dict
    from resnetkit.shipped import recipes
    from resnetkit.weights import asked_architecture

    known = recipes()
    checked = load(Path(file), bases=known)
    if checked.model.arch != "auto":
        asked_architecture(checked.model)
    print(f"{shown(file)}: no mistakes")
    if checked.name in known:
        old, new = to_dict(known[checked.name]), to_dict(checked)
        for table in [key for key in new if key != "name"]:
            for key, value in new[table].items():
                if value != old[table][key]:
                    print(f"  {table}.{key} = {value}, in {checked.name} {old[table][key]}")


def asked(
    recipe: str | None,
    model: str | None,
    epochs: str | None,
    settings: Sequence[str],
    weights: str | None,
    freeze: str | None = None,
) -> Recipe:
    """The recipe that the options of `train` ask for."""
    import json

    from resnetkit.recipe_file import with_settings

    if freeze is not None and weights is None:
        raise UserError(f"--freeze {freeze}: layers that do not learn must have learnt before; give --from WEIGHTS")
    usual = "frozen" if freeze == "backbone" else "finetune" if weights else "small"
    chosen = find_recipe(recipe or usual)
    if freeze is not None:
        chosen = with_settings(chosen, [f"optim.freeze={json.dumps(freeze)}"], where="--freeze")
    if model is not None:
        chosen = with_settings(chosen, [f"model.arch={json.dumps(model)}"], where="--model")
    if epochs is not None:  # a length in steps would go before it
        chosen = with_settings(chosen, [f"schedule.epochs={epochs}", "schedule.steps=0"], where="--epochs")
    return with_settings(chosen, settings)


def find_recipe(name: str) -> Recipe:
    """A shipped recipe, or one in a file. Raises UserError."""
    from resnetkit.recipe_file import load
    from resnetkit.shipped import recipes, shipped

    known = recipes()
    if name not in known and (name.endswith(".toml") or os.sep in name or Path(name).is_file()):
        return load(Path(name), bases=known)
    return shipped(name)
