"""The errors that are a user's to mend. Each message is one sentence: what is wrong, where, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Wrong input. The command line prints the message alone and exits with 2.

    chosen  of several processes that train together, this is the one that says it
    """

    chosen = False


class Elsewhere(Exception):  # noqa: N818 - it names where to look
    """Another of the processes that train together has failed, and says why."""


class Diverged(UserError):  # noqa: N818 - it names what happened
    """The loss of a training, or what its network answers, is no longer a number; None: no step known."""

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class BadPicture(UserError):  # noqa: N818 - it names what was found
    """A file that cannot be read as a picture. `str(error)` is the reason alone, without the path."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of the choices, or an empty string when none is close."""
    close = get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown_name(path: str) -> str:
    """A path that can be printed: bytes that are not UTF-8 as escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
