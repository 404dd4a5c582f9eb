"""Between the shell and a command: exit codes, errors as one sentence, output that any name survives."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from resnetkit.errors import Elsewhere, UserError, nearest
from resnetkit.rendezvous import rank
from resnetkit.terminal import MEASURED_SECONDS, duration, shown

SYSTEM = {  # what a system may refuse that is not a fault of ours
    errno.ENOSPC: "no space left; make room, then type the command again",
    errno.EDQUOT: "no space left in your quota; make room, then type the command again",
    errno.EROFS: "this place is read-only; choose another",
    errno.EACCES: "permission denied; choose another place, or ask for the permission",
    errno.ENAMETOOLONG: "the name is too long",
}
WRONG_INPUT, INTERRUPTED, NO_READER = 2, 130, 1  # exit codes; SIGINT is signal 2


class Later(MutableMapping[str, click.Command]):
    """Commands by name; those that are promised are imported when they are asked for, each alone."""

    def __init__(self) -> None:
        self.found: dict[str, click.Command | tuple[str, str]] = {}

    def __getitem__(self, name: str) -> click.Command:
        found = self.found[name]
        if isinstance(found, tuple):
            module, attribute = found
            found = self.found[name] = getattr(import_module(module), attribute)
        return found

    def __setitem__(self, name: str, command: click.Command) -> None:
        self.found[name] = command

    def __delitem__(self, name: str) -> None:
        del self.found[name]

    def __contains__(self, name: object) -> bool:
        return name in self.found

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)


class Commands(click.Group):
    """Commands in the order in which they are written; for an unknown one the nearest is named."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.commands: Later = Later()

    def promise(self, module: str, *names: str) -> None:
        """Commands that the functions of these names in a module are; `import_` is import, `label_next` label-next."""
        for name in names:
            self.commands.found[name.rstrip("_").replace("_", "-")] = (f"resnetkit.{module}", name)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            hint = nearest(name, self.commands) or f"; choose from {', '.join(self.commands)}"
            raise click.UsageError(f"no such command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


exclude_option = click.option(
    "--exclude",
    metavar="FILE",
    multiple=True,
    help="Leave out the pictures named in this .csv (column path) or .txt file, as resnet check writes it; repeatable.",
)
bad_option = click.option(
    "--bad",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do about pictures that cannot be read: name them and stop, or leave them out and list them.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, an object per value, and nothing else.")


def prepare() -> None:
    """What the whole process needs before a command runs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
    if "RANK" in os.environ:  # torch would tell of a broken connection with a page of addresses, before we do
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    if rank() != 0 and sys.stdout is not None:  # of processes that work together one prints
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd pictures, which the audit reports by name


def run(root: click.Command, arguments: Sequence[str] | None) -> int:
    """Run a command line and give its exit code. What is nobody's fault but ours is raised."""
    try:
        code = root.main(arguments, prog_name="resnet", standalone_mode=False)
        if sys.stdout is not None:  # None: closed by the caller
            sys.stdout.flush()  # what cannot be written is noticed here, not when the process ends
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
    except click.ClickException as error:
        if rank() == 0:
            complain(sentence(error))
    except UserError as error:
        if rank() == 0 or error.chosen:
            complain(str(error))
    except Elsewhere:
        pass
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough
        drop_output()
        return NO_READER
    except OSError as error:
        if error.errno not in SYSTEM:
            raise
        drop_output()
        complain(f"{os.fsdecode(error.filename or 'output')}: {SYSTEM[error.errno]}")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        complain("not enough memory; take fewer pictures at a time (--set optim.batch=N) or a smaller network")
    return WRONG_INPUT


def end(root: click.Command, arguments: Sequence[str] | None) -> NoReturn:
    """`run`, and end this process with the exit code.

    One of several processes that work together ends at once when it fails: torch, when it tidies up, would wait until
    its timeout for answers that nobody gives any more, and the other processes with it.
    """
    together, code = "RANK" in os.environ, 1
    try:
        code = run(root, arguments)
    except Exception:
        if not together:
            raise
        traceback.print_exc()
    if together and code:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def whole_numbers(option: str, text: str, such_as: str, least: int = 0) -> tuple[int, ...]:
    """`1,8,32`, none below `least`. Raises UserError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) >= least for part in parts):
        bound = f" from {least} on" if least else ""
        raise UserError(f"{option} {text}: must be whole numbers{bound} between commas, such as {such_as}")
    return tuple(map(int, parts))


def complain(message: str) -> None:
    """One sentence on standard error."""
    print(f"resnet: {shown(message)}", file=sys.stderr)


def note(message: str) -> None:
    """A line on standard error that is no complaint."""
    print(shown(message), file=sys.stderr, flush=True)


def is_terminal(*, stderr: bool = False) -> bool:
    """Whether a person reads standard output, or standard error."""
    stream = sys.stderr if stderr else sys.stdout
    return stream is not None and stream.isatty()


def sentence(error: click.ClickException) -> str:
    """click's message about the command line as ours: one sentence, and where the help is."""
    message = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption):
        message = f"no such option {error.option_name}{nearest(error.option_name, error.possibilities or ())}"
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message[:1].lower()}{message[1:]}" + (f" (see: {context.command_path} --help)" if context else "")


def out_of_memory(error: Exception) -> bool:
    """torch has its own ways to say MemoryError."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error)
    )


def drop_output() -> None:
    """Where standard output cannot be written, what is left of it must not raise again when the process ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def told(tell: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """What is being done, how far it is, and how long it will take, for a line such as `terminal.status` gives."""
    began: dict[str, float] = {}

    def show(what: str, done: int, total: int) -> None:
        seconds = time.monotonic() - began.setdefault(what, time.monotonic())
        left = f"   {duration(seconds * (total - done) / done)} left" if done and seconds >= MEASURED_SECONDS else ""
        tell(f"{what}: {done:,} of {total:,} ({100 * done // max(1, total)} %){left}")

    return show


def device() -> str:
    """Where training would run, so that scores of training and of `evaluate` come from one device."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def emit(value: Any) -> None:
    """One JSON object on one line of standard output; ASCII only, so that any file name survives."""
    import json

    line(json.dumps(value))


def line(text: str) -> None:
    """One line on standard output, at once and in one piece: Ctrl-C falls between lines."""
    print(f"{text}\n", end="", flush=True)
