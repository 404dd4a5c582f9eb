"""Where processes that work together meet: the variables that torchrun sets, and the store that they all reach."""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import TYPE_CHECKING

from resnetkit.errors import UserError

if TYPE_CHECKING:  # whoever asks for a rank alone starts without torch
    from torch.distributed import Store  # type: ignore[attr-defined]

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # that torchrun sets
TIMEOUT = "RESNETKIT_TIMEOUT"  # the variable with the seconds that a rank waits for another
SECONDS = 600.0  # where it is not set: writing a checkpoint to a slow disk must fit
JOINING = 60.0  # seconds, at most, for the first contact


def rank() -> int:
    """Which of the processes this is, from 0; 0 also for one that is alone, or told nonsense (`joined` says so)."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def torchrun() -> dict[str, str] | None:
    """What torchrun tells; None where neither RANK nor WORLD_SIZE is set. Raises UserError for what makes no sense."""
    found = {name: os.environ.get(name, "") for name in VARIABLES}
    if not found["RANK"] and not found["WORLD_SIZE"]:
        return None
    lacking = [name for name, value in found.items() if not value]
    if lacking:
        there = ", ".join(name for name in ("RANK", "WORLD_SIZE") if found[name])
        raise UserError(
            f"{there} is set, but not {', '.join(lacking)}; start with torchrun, which sets them all, or unset {there}"
        )
    for name in (*VARIABLES[:3], "MASTER_PORT"):
        if not found[name].isdecimal():
            raise UserError(f"{name}={found[name]}: must be a whole number; start with torchrun, which sets it")
    if int(found["RANK"]) >= int(found["WORLD_SIZE"]):
        raise UserError(f"RANK={found['RANK']}: must be below WORLD_SIZE={found['WORLD_SIZE']}; start with torchrun")
    return found


def patience() -> float:
    """How long a rank waits for another, in seconds. Raises UserError."""
    text = os.environ.get(TIMEOUT, str(SECONDS))
    with contextlib.suppress(ValueError):
        if 1 <= float(text) <= 1e6:
            return float(text)
    raise UserError(f"{TIMEOUT}={text}: must be seconds, from 1 to a million")


def connect(environment: dict[str, str], seconds: float, *, hosts: bool) -> Store:
    """The store where the ranks meet, which rank 0 keeps where torchrun does not. Raises UserError."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address, port = environment["MASTER_ADDR"], environment["MASTER_PORT"]
    try:
        return TCPStore(address, int(port), is_master=hosts, timeout=timedelta(seconds=seconds), wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        says = f"rank {environment['RANK']}: {address}:{port}"
        doing = "cannot be listened at" if hosts else f"nobody answers there within {seconds:g} s"
        failed = UserError(f"{says}: {doing}; check MASTER_ADDR, MASTER_PORT and the network ({first_line(error)})")
        failed.chosen = environment["LOCAL_RANK"] == "0"  # nobody can be asked, so one rank of each machine speaks
        raise failed from None


def prefixed(prefix: str, store: Store) -> Store:
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    return PrefixStore(prefix, store)


def first_line(error: Exception) -> str:
    """What torch says, without the place in its source and what follows."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rpartition("] ")[2][:150]
