"""Recipes as TOML and as plain values: reading, checking, writing. Standard library only.

The annotations of the dataclasses in `recipe` decide which keys exist and which values they take; `LIMITS` adds the
ranges. Errors call a key by its dotted name, `optim.lr`, as `--set` does.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from resnetkit.errors import UserError, nearest
from resnetkit.recipe import Recipe


@dataclass(frozen=True)
class Limit:
    """A range, in the words that errors and files use."""

    text: str
    holds: Callable[[Any], bool]


POSITIVE = Limit("> 0", lambda value: value > 0)
NOT_NEGATIVE = Limit(">= 0", lambda value: value >= 0)
AT_LEAST_ONE = Limit(">= 1", lambda value: value >= 1)
SHARE = Limit("in [0, 1]", lambda value: 0 <= value <= 1)
SHARE_BELOW_ONE = Limit("in [0, 1)", lambda value: 0 <= value < 1)
SHARE_ABOVE_ZERO = Limit("in (0, 1]", lambda value: 0 < value <= 1)


def _sizes(pairs: tuple[tuple[float, int], ...]) -> bool:
    shares = [share for share, _ in pairs]
    return shares[:1] in ([], [0]) and shares == sorted(set(shares)) and all(0 <= a < 1 and b > 0 for a, b in pairs)


LIMITS = {
    "model.stem_stride": Limit("among 1, 2, 4", lambda value: value in (1, 2, 4)),
    "data.size": AT_LEAST_ONE,
    "data.crop": SHARE_ABOVE_ZERO,
    "data.channels": Limit("among 1, 3", lambda value: value in (1, 3)),
    "data.val": SHARE_BELOW_ONE,
    "augment.pad": NOT_NEGATIVE,
    "augment.scale": Limit("with 0 < low <= high <= 1", lambda pair: 0 < pair[0] <= pair[1] <= 1),
    "augment.ratio": Limit("with 0 < low <= high", lambda pair: 0 < pair[0] <= pair[1]),
    "augment.sides": Limit("with 0 < low <= high", lambda pair: 0 < pair[0] <= pair[1]),
    "augment.colour": NOT_NEGATIVE,
    "augment.jitter": SHARE,
    "augment.erase": SHARE,
    "augment.erase_area": Limit("with 0 < low <= high < 1", lambda pair: 0 < pair[0] <= pair[1] < 1),
    "augment.repeats": AT_LEAST_ONE,
    "augment.sizes": Limit("[share, pixels], the shares increasing from 0 on, below 1", _sizes),
    "augment.ops": Limit("from 1 to 4", lambda value: 1 <= value <= 4),
    "augment.magnitude": Limit("in [0, 10]", lambda value: 0 <= value <= 10),
    "augment.magnitude_std": NOT_NEGATIVE,
    "augment.mixup": NOT_NEGATIVE,
    "augment.cutmix": NOT_NEGATIVE,
    "optim.lr": POSITIVE,
    "optim.momentum": SHARE_BELOW_ONE,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.batch": AT_LEAST_ONE,
    "optim.accumulate": AT_LEAST_ONE,
    "optim.ghost_batch": Limit("0, or 2 and more", lambda value: value == 0 or value >= 2),
    "optim.clip": NOT_NEGATIVE,
    "optim.target_threshold": SHARE_BELOW_ONE,
    "optim.label_smoothing": SHARE_BELOW_ONE,
    "optim.class_weights": SHARE,
    "optim.logit_adjustment": NOT_NEGATIVE,
    "optim.ema": SHARE_BELOW_ONE,
    "optim.stochastic_depth": SHARE_BELOW_ONE,
    "optim.layer_decay": SHARE_ABOVE_ZERO,
    "schedule.epochs": POSITIVE,
    "schedule.steps": NOT_NEGATIVE,
    "schedule.milestones": Limit(
        "increasing in (0, 1)", lambda shares: all(a < b for a, b in zip((0.0, *shares), (*shares, 1.0), strict=True))
    ),
    "schedule.gamma": SHARE_ABOVE_ZERO,
    "schedule.warmup_steps": NOT_NEGATIVE,
    "schedule.warmup_share": SHARE_BELOW_ONE,
    "schedule.warmup_start": SHARE,
    "run.seed": Limit("in [0, 2**63)", lambda value: 0 <= value < 2**63),
    "run.threads": AT_LEAST_ONE,
    "run.cache_mb": NOT_NEGATIVE,
    "run.eval_epochs": AT_LEAST_ONE,
    "run.checkpoint_steps": AT_LEAST_ONE,
    "run.checkpoint_minutes": POSITIVE,
}


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The whole tree as tables, arrays and plain values, ready for JSON; `from_dict` gives the recipe back."""
    tables: dict[str, Any] = _plain(recipe)
    return tables


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {key: _plain(getattr(value, key)) for key in _kinds(type(value))}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_dict(mapping: Mapping[str, Any], *, where: str, base: Recipe | None = None) -> Recipe:
    """The recipe that `mapping` describes; a key that is missing keeps its value of `base`, by default `Recipe()`.

    `where` is the mapping's name in errors. Raises UserError for a key or value that is not allowed.
    """
    recipe: Recipe = _merge(Recipe() if base is None else base, mapping, "", where)
    _check_together(recipe, where)
    return recipe


def load(path: Path, *, bases: Mapping[str, Recipe] | None = None) -> Recipe:
    """The recipe in a TOML file; see `loads`. Raises UserError also for a file that cannot be read as UTF-8 text."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe file") from None
    except OSError as error:
        raise UserError(f"{path}: the recipe cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 text; save the file as UTF-8"
        ) from None
    return loads(text, where=str(path), bases=bases)


def loads(text: str, *, where: str, bases: Mapping[str, Recipe] | None = None) -> Recipe:
    """The recipe in a TOML text that gives only what differs from its base.

    A first line `base = "small"` names the base, one of `bases`; without it the base is `Recipe()`.
    """
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more than 4300 digits
        raise UserError(_syntax(text, where, str(error))) from None
    base = Recipe()
    if "base" in tables:
        name, known = tables.pop("base"), bases or {}
        if not isinstance(name, str) or name not in known:
            allowed = _either(json.dumps(choice) for choice in known) or "left out"
            raise UserError(f"base = {_toml(name)} in {where}: must be {allowed}{nearest(str(name), known)}")
        base = known[name]
    return from_dict(tables, where=where, base=base)


def _syntax(text: str, where: str, message: str) -> str:
    """tomllib's "Invalid value (at line 3, column 5)" with the line where a reader looks for it."""
    match = re.fullmatch(r"(.+?) \(at (?:line (\d+), column (\d+)|end of document)\)", message)
    if not match:
        return f"{where}: not a TOML file that can be read: {message}"
    line = match[2] or text.rstrip("\n").count("\n") + 1
    column = f", column {match[3]}" if match[3] else ""
    return f"{where}, line {line}{column}: not TOML: {match[1][0].lower()}{match[1][1:]}"


def dumps(recipe: Recipe) -> str:
    """The whole recipe as TOML; beside each key that does not take everything of its type, what it takes."""
    lines = [f"name = {_toml(recipe.name)}"]
    for table, kind in _kinds(Recipe).items():
        if not is_dataclass(kind):
            continue
        lines += ["", *(f"# {line}" for line in (kind.__doc__ or "").splitlines()[:1]), f"[{table}]"]
        for key, value_kind in _kinds(kind).items():
            line = f"{key} = {_toml(_plain(getattr(getattr(recipe, table), key)))}"
            dotted = f"{table}.{key}"
            lines.append(line if value_kind in (bool, str) else f"{line}  # {_allowed(dotted, value_kind)}")
    return "\n".join([*lines, ""])


def with_settings(recipe: Recipe, settings: Iterable[str], *, where: str = "--set") -> Recipe:
    """The recipe changed by settings such as `optim.lr=0.05`, `model.arch=resnet50`, `schedule.milestones=0.4,0.8`.

    Values are TOML; what is not TOML is a list where it has commas, else a word. Raises UserError as `from_dict`.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{where} {setting}: write KEY=VALUE, such as optim.lr=0.05")
        value: Any = _value(text.strip())
        for part in reversed(key.strip().split(".")):
            value = {part: value}
        recipe = _merge(recipe, value, "", where)
    _check_together(recipe, where)  # once, after all: settings that only hold together come in any order
    return recipe


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return [_value(part.strip()) for part in text.split(",") if part.strip()] if "," in text else text
    return parsed["value"] if len(parsed) == 1 else text


def _kinds(table: Any) -> dict[str, Any]:
    """The keys of a dataclass, in order, with their types."""
    hints = get_type_hints(table)
    return {field.name: hints[field.name] for field in fields(table)}


def _merge(base: Any, mapping: Mapping[str, Any], prefix: str, where: str) -> Any:
    """`base`, a dataclass of the recipe, with what `mapping` gives in place."""
    kinds = _kinds(type(base))
    changes: dict[str, Any] = {}
    for key, value in mapping.items():
        dotted = f"{prefix}{key}"
        if key not in kinds:
            raise UserError(f"{dotted}: no such key in {where}{_meant(key, prefix, kinds)}")
        if not is_dataclass(kinds[key]):
            changes[key] = _checked(dotted, kinds[key], value, where)
        elif isinstance(value, Mapping):
            changes[key] = _merge(getattr(base, key), value, f"{dotted}.", where)
        else:
            raise UserError(f"{dotted} = {_toml(value)} in {where}: must be a table, [{dotted}]")
    return replace(base, **changes)


def _meant(key: str, prefix: str, kinds: dict[str, Any]) -> str:
    """The end of an error about an unknown key: the same key of another table, a similar one, or this table's keys."""
    siblings = {name: f"{prefix}{name}" for name in kinds}
    tables = {table: kind for table, kind in _kinds(Recipe).items() if is_dataclass(kind)}
    elsewhere = {name: f"{table}.{name}" for table, kind in tables.items() for name in _kinds(kind)}
    for names, cutoff in ((elsewhere, 1.0), (siblings, 0.6), (elsewhere, 0.6)):
        close = get_close_matches(key, names, n=1, cutoff=cutoff)
        if close:
            return f"; did you mean {names[close[0]]!r}?"
    return f"; choose from {', '.join(siblings.values())}"


def _checked(key: str, kind: Any, value: Any, where: str) -> Any:
    """`value` as the type `kind`, or UserError with what is allowed."""
    for choice in _choices(kind):
        fits, converted = _convert(choice, value)
        limit = None if get_origin(choice) is Literal else LIMITS.get(key)
        if fits and (limit is None or limit.holds(converted)):
            return converted
    words = [word for choice in _choices(kind) if get_origin(choice) is Literal for word in get_args(choice)]
    hint = nearest(value, words) if isinstance(value, str) else ""
    raise UserError(f"{key} = {_toml(value)} in {where}: must be {_allowed(key, kind)}{hint}")


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _convert(kind: Any, value: Any) -> tuple[bool, Any]:
    """Whether `value` is of the type, and the value in it: an integer may stand for a float, an array for a tuple."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind), value
    if get_origin(kind) is tuple:
        return _convert_array(get_args(kind), value)
    if kind is float and type(value) in (int, float):
        finite = abs(value) < 2**63 if type(value) is int else math.isfinite(value)
        return finite, float(value) if finite else value
    if kind is int:
        return type(value) is int and abs(value) < 2**63, value
    return type(value) is kind, value


def _convert_array(kinds: tuple[Any, ...], value: Any) -> tuple[bool, Any]:
    if not isinstance(value, list | tuple):
        return False, value
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        return False, value
    items = [_convert(kind, item) for kind, item in zip(kinds, value, strict=True)]
    return all(fits for fits, _ in items), tuple(item for _, item in items)


def _allowed(key: str, kind: Any) -> str:
    """What a key takes, in words: `an integer >= 1 or "auto"`."""
    words: list[str] = []
    limit = f" {LIMITS[key].text}" if key in LIMITS else ""
    for choice in _choices(kind):
        if get_origin(choice) is Literal:
            words += [json.dumps(word) for word in get_args(choice)]
        elif get_origin(choice) is tuple:
            items = get_args(choice)
            many = "" if items[-1] is Ellipsis else f"{len(items)} "
            what = {int: "integers", float: "numbers"}.get(items[0], "pairs")
            words.append(f"an array of {many}{what}{limit}")
        else:
            name = {bool: "true or false", int: "an integer", float: "a number", str: "text in quotes"}[choice]
            words.append(f"{name}{limit}")
    return _either(words)


def _either(words: Iterable[str]) -> str:
    *others, last = [*words] or [""]
    return f"{', '.join(others)} or {last}" if others else last


def _check_together(recipe: Recipe, where: str) -> None:
    """What no single key shows."""
    optim, schedule = recipe.optim, recipe.schedule
    if optim.nesterov and optim.momentum == 0:
        raise UserError(f"optim.nesterov = true in {where}: needs optim.momentum > 0")
    if optim.nesterov and optim.optimizer == "lamb":
        raise UserError(f'optim.nesterov = true in {where}: is SGD\'s; leave it out with optim.optimizer = "lamb"')
    if optim.optimizer == "lbfgs":
        _check_frozen(recipe, where)
    if optim.target_threshold and optim.loss != "bce":
        raise UserError(f'optim.target_threshold = {optim.target_threshold} in {where}: needs optim.loss = "bce"')
    _check_balance(recipe, where)
    if recipe.run.compile and (optim.stochastic_depth or recipe.run.activation_checkpointing):
        other = "optim.stochastic_depth" if optim.stochastic_depth else "run.activation_checkpointing"
        raise UserError(f"run.compile = true in {where}: does not go with {other}; choose one of the two")
    if recipe.run.cuda_graphs and (not recipe.run.compile or optim.accumulate > 1):
        # The gradients of one part lie where the replay for the next one writes.
        need = "run.compile = true" if not recipe.run.compile else "optim.accumulate = 1"
        raise UserError(f"run.cuda_graphs = true in {where}: needs {need}")
    if isinstance(optim.batch, int) and optim.accumulate > optim.batch:
        raise UserError(
            f"optim.accumulate = {optim.accumulate} in {where}: must not be above optim.batch = {optim.batch}"
        )
    if optim.ghost_batch and optim.sync_norm:
        raise UserError(
            f"optim.ghost_batch = {optim.ghost_batch} in {where}: does not go with optim.sync_norm; leave one out"
        )
    if isinstance(schedule.warmup_steps, int) and 0 < schedule.steps <= schedule.warmup_steps:
        raise UserError(
            f"schedule.warmup_steps = {schedule.warmup_steps} in {where}: "
            f"must be below schedule.steps = {schedule.steps}"
        )


def _check_balance(recipe: Recipe, where: str) -> None:
    """What makes up for classes of unlike size does so once."""
    optim = recipe.optim
    asked = {"data.sampling": recipe.data.sampling == "balanced", "optim.class_weights": optim.class_weights}
    on = [key for key, value in (asked | {"optim.logit_adjustment": optim.logit_adjustment}).items() if value]
    if len(on) > 1:
        raise UserError(f"{' and '.join(on)} in {where}: each makes up for small classes; choose one")
    if optim.logit_adjustment and optim.loss == "bce":
        raise UserError(f'optim.logit_adjustment in {where}: is of softmax; set optim.loss = "cross-entropy"')


def _check_frozen(recipe: Recipe, where: str) -> None:
    """What "lbfgs" needs: it sees the vector of each picture, once and unchanged."""
    optim, augment, what = recipe.optim, recipe.augment, f'optim.optimizer = "lbfgs" in {where}'
    if optim.freeze != "backbone":
        raise UserError(f'{what}: fits the dense layer alone; set optim.freeze = "backbone"')
    if recipe.data.sampling == "balanced":
        raise UserError(f"{what}: sees every picture once; set optim.class_weights = 1 in place of data.sampling")
    off = {"flip": False, "colour": 0, "jitter": 0, "policy": "none", "erase": 0, "mixup": 0, "cutmix": 0}
    for key, value in ({"crop": "none", "repeats": 1, "sizes": ()} | off).items():
        if getattr(augment, key) != value:
            raise UserError(f"{what}: sees every picture once, unchanged; set augment.{key} = {_toml(value)}")
    for key, value in {"ema": 0, "stochastic_depth": 0, "nesterov": False, "clip": 0, "layer_decay": 1}.items():
        if getattr(optim, key) != value:
            raise UserError(f"{what}: has no use for optim.{key}; set it to {_toml(value)}")


def _toml(value: Any) -> str:
    """A plain value as TOML writes it."""
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)
