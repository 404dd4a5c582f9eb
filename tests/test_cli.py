"""The command `resnet`: its frozen tree, what it imports, what it says about wrong input, and what it exits with."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from resnetkit import cli, evaluation

TREE = Path(__file__).with_name("command_tree.txt")


def process(*arguments: str | bytes, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command line in a process of its own."""
    return subprocess.run([sys.executable, "-m", "resnetkit", *arguments], capture_output=True, check=False, **kwargs)


def commands(command: click.Command, path: str = "resnet") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, f"{path} {name}")


def tree() -> str:
    lines = []
    for path, command in commands(cli.root):
        context = click.Context(command)
        arguments = [part.make_metavar(context) for part in command.params if isinstance(part, click.Argument)]
        lines.append(" ".join([path, *arguments]))
        for option in command.params:
            if isinstance(option, click.Option):
                value = "" if option.is_flag else f" {option.make_metavar(context)}"
                marks = [word for word in ("required", "multiple") if getattr(option, word)]
                lines.append(" ".join([f"{path} {'/'.join(option.opts)}{value}", *marks]))
    return "\n".join([*lines, ""])


# The tree


def test_the_command_line_is_frozen() -> None:
    assert tree() == TREE.read_text(encoding="utf-8"), (
        "a new option needs a reviewed line in tests/command_tree.txt; could it be a recipe key instead?"
    )


def test_nothing_escapes_the_tree() -> None:
    """No option comes from the environment or is hidden, and no other module reads the arguments of the process."""
    options = [option for _, command in commands(cli.root) for option in command.params]
    assert [option.name for option in options if option.envvar or getattr(option, "hidden", False)] == []
    source = Path(cli.__file__).parent
    readers = {
        path.stem for path in source.rglob("*.py") if re.search(r"argparse|sys\.argv|import click", path.read_text())
    }
    # runs writes down the command that was given
    assert readers == {
        "cli",
        "cli_bench",
        "cli_calibrate",
        "cli_check",
        "cli_compare",
        "cli_evaluate",
        "cli_explain",
        "cli_export",
        "cli_label",
        "cli_paper",
        "cli_predict",
        "cli_recipe",
        "cli_report",
        "cli_serve",
        "cli_shard",
        "cli_weights",
        "runs",
        "shell",
        "mnn",  # the converter, in a process of its own
    }


@pytest.mark.parametrize("path", [path for path, _ in commands(cli.root)])
def test_help_has_an_example_that_parses(path: str, resnet: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = resnet(*path.split()[1:], "--help")
    assert code == 0
    examples = re.findall(r"^ +(resnet .*?)(?:   .*)?$", re.sub(r"\s*\\\n\s*", " ", out), flags=re.MULTILINE)
    assert examples
    known = dict(commands(cli.root))
    for example in examples:
        words = [word for word in shlex.split(example) if word != "COMMAND"]
        name = max((path for path in known if words[: len(path.split())] == path.split()), key=len)
        rest = words[len(name.split()) :]
        if rest != ["--help"]:
            known[name].make_context(name, rest)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["recipe", "list"], ["recipe", "show", "small"]]
)
def test_light_commands_stay_light(arguments: list[str]) -> None:
    code = "import sys\ntry:\n import resnetkit.cli; resnetkit.cli.main(sys.argv[1:])\nfinally:\n print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "click" in loaded
    assert loaded & {"torch", "numpy", "PIL", "rich", "matplotlib", "jinja2", "importlib.metadata"} == set()


def test_version(resnet: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = resnet("--version")
    assert (code, out) == (0, f"resnet {__import__('resnetkit').__version__}\n")


# Wrong input


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian photos", "no such command 'trian'; did you mean 'train'? (see: resnet --help)"),
        (
            "xyzzy",
            "no such command 'xyzzy'; choose from train, resume, check, evaluate, compare, report, calibrate, "
            "predict, explain, label-next, serve, embed, model, shard, recipe, paper, import, export, bench, bn",
        ),
        ("recipe shwo small", "no such command 'shwo'; did you mean 'show'? (see: resnet recipe --help)"),
        ("train", "missing argument 'DATA' (see: resnet train --help)"),
        ("train x --epohcs 3", "no such option --epohcs; did you mean '--epochs'? (see: resnet train --help)"),
        ("evaluate m x --bad drop", "'drop' is not one of 'stop', 'skip' (see: resnet evaluate --help)"),
        ("predict m a.jpg --top 0", "0 is not in the range x>=1 (see: resnet predict --help)"),
        ("train nowhere", "nowhere: no such folder or table; check the path"),
        ("train x --recipe smal", "recipe 'smal': choose from small, "),
        ("train x --recipe nowhere.toml", "nowhere.toml: no such recipe file"),
        ("train x --epochs many", 'schedule.epochs = "many" in --epochs: must be a number > 0 or "auto"'),
        ("train x --set optim.lrr=1", "optim.lrr: no such key in --set; did you mean 'optim.lr'?"),
        ("train x --set optim.lr=-1", "optim.lr = -1 in --set: must be a number > 0"),
        ("train x --set nonsense", "--set nonsense: write KEY=VALUE, such as optim.lr=0.05"),
        ("resume nowhere", "nowhere: not a run folder (no recipe.json)"),
        ("evaluate nowhere", "nowhere: no such model file or run folder"),
        ("calibrate nowhere", "nowhere: no such model file or run folder"),
        ("calibrate nowhere.onnx", "nowhere.onnx: no such model file or run folder"),
        ("calibrate m x --bad drop", "'drop' is not one of 'stop', 'skip' (see: resnet calibrate --help)"),
        ("predict nowhere a.jpg", "nowhere: no such model file or run folder"),
        ("predict nowhere.onnx -", "nowhere.onnx: no such model file or run folder"),
        ("predict m a.jpg --append", "--append: goes on with a file; name it with --out"),
        ("predict m a.jpg --min-probability 2", "2.0 is not in the range 0<=x<=1 (see: resnet predict --help)"),
        ("embed nowhere a.jpg --out v.npy", "nowhere: no such model file or run folder"),
        ("embed nowhere a.jpg --out v.txt", "v.txt: vectors go into a .npy or a .parquet file; give the name one of"),
        (
            "embed nowhere a.jpg --out no/v.npy",
            "no/v.npy: there is no folder no; make it first, or choose another place",
        ),
        ("embed m a.jpg", "missing option '--out' (see: resnet embed --help)"),
        ("model resnet19", "architecture 'resnet19': choose from resnet18, 26, 34, 50, 101, 152, 200, "),
        ("model resnet21-cifar", "a CIFAR network has 6n+2 layers"),
        ("model plain18 --shortcut B", "plain18 is a network without shortcuts; take resnet18"),
        ("model ./nowhere", "nowhere: no such model file or run folder"),
        ("model nowhere.safetensors", "nowhere.safetensors: no such model file or run folder"),
        ("recipe show smal", "did you mean 'small'?"),
        ("recipe check nowhere.toml", "nowhere.toml: no such recipe file"),
        ("recipe copy small mine", "mine: a recipe file ends in .toml"),
        ("recipe copy small nowhere/mine.toml", "nowhere/mine.toml: cannot be written (No such file or directory)"),
        ("train " + "x" * 300 + " --recipe " + "y" * 300, "the name is too long"),
    ],
)
def test_wrong_input_gets_one_sentence(
    line: str,
    message: str,
    resnet: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = resnet(*line.split())
    assert (code, out) == (2, "")
    assert err.startswith("resnet: ")
    assert err.count("\n") == 1
    assert message in err
    assert not any(path.is_file() for path in tmp_path.rglob("*")), "nothing half-written"


def test_without_a_command_there_is_help(resnet: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = resnet()
    assert (code, out) == (2, "")
    assert "Commands:\n  train " in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "\n"),
        (MemoryError(), 2, "resnet: not enough memory; "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "resnet: not enough memory; "),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "resnet: not enough memory; "),
        (OSError(28, "No space left", "runs/a"), 2, "resnet: runs/a: no space left; make room, then"),
        (PermissionError(13, "Permission denied", b"runs/\xff"), 2, "resnet: runs/\\xff: permission denied; "),
    ],
)
def test_what_a_machine_may_refuse(
    error: BaseException,
    code: int,
    message: str,
    resnet: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "evaluate", raising(error))
    got, out, err = resnet("evaluate", "m")
    assert (got, out) == (code, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), OSError(5, "Input/output error")])
def test_our_own_mistakes_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "evaluate", raising(error))
    with pytest.raises(type(error)):
        cli.main(["evaluate", "m"])


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_arguments: object, **_named: object) -> None:
        raise error

    return call


# train, resume


def test_names_may_be_any_bytes(tmp_path: Path) -> None:
    """An argument that is not UTF-8 arrives, and can be printed, also where the terminal is ASCII only."""
    name = os.fsencode(tmp_path) + b"/caf\xe9 \xe7\x8c\xab.toml"
    done = process(b"recipe", b"copy", b"small", name, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\\xe9 \\u732b.toml" in done.stdout
    assert Path(os.fsdecode(name)).exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without room")
def test_output_without_room() -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "resnetkit", "recipe", "show", "small"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        b"resnet: output: no space left; make room, then type the command again\n",
    )


def test_a_reader_that_goes_away() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "resnetkit", "recipe", "show", "small"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
