"""Processes that train or score together ("ranks"): which one this is, what they agree on, who of them is missing.

torchrun starts them and says by environment variables which is which; torch.distributed carries what they tell each
other, gloo between CPUs and NCCL between GPUs. A process without these variables is alone and needs none of it.

A rank that fails says so in the store, where the first one to do so is the one that speaks. A rank that is gone is
known by its pulse.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn, TypeVar

from resnetkit.errors import Elsewhere, UserError
from resnetkit.pulse import BEAT, BROKEN, SILENT, Others, Pulse, within
from resnetkit.rendezvous import JOINING, TIMEOUT, VARIABLES, connect, first_line, patience, prefixed, torchrun

if TYPE_CHECKING:  # whoever asks for a rank alone starts without torch
    from torch import Tensor, nn

T = TypeVar("T")


class Ranks:
    """All processes of this training or scoring, as one of them sees it. This class is the one of a process alone.

    rank    which one this is, from 0; rank 0 writes, prints and draws
    world   how many there are
    local, here  the same among those on this machine
    names   machine of each, in order of ranks
    """

    rank, world, local, here = 0, 1, 0, 1
    names: tuple[str, ...] = ()
    restarted = False  # whether torchrun has started these ranks again, after one of them failed

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, n: int) -> tuple[int, int]:
        """Begin and end of this rank's part of n things; the parts follow each other and differ by one at most."""
        return self.rank * n // self.world, (self.rank + 1) * n // self.world

    def meet(self) -> None:
        """Wait until all ranks are here, however long that takes, unless one is gone."""

    def agreed(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, which may take long; the others get a copy."""
        return make()

    def gathered(self, value: T) -> list[T]:
        """On rank 0 the values of all ranks in order, elsewhere nothing."""
        return [value]

    def exchanged(self, value: T) -> list[T]:
        """The values of all ranks in order, on every rank."""
        return [value]

    def highest(self, *numbers: int) -> list[int]:
        """Each number's highest value among the ranks."""
        return list(numbers)

    def add(self, tensor: Tensor) -> None:
        """Put the sum over all ranks in the place of each rank's tensor."""

    def average_statistics(self, network: nn.Module) -> None:
        """Put the mean over all ranks in the place of each rank's running statistics."""

    def parallel(self, network: nn.Module, blank: Tensor, *, skips: bool) -> nn.Module:
        """The network with gradients that are the mean over all ranks.

        blank   any input (N, C, H, W) of at least two pictures
        skips   whether some parameters may take no part in a step
        """
        del blank, skips
        return network

    def holding(self, parallel: nn.Module) -> AbstractContextManager[None]:
        """While it is held, what `parallel` gave leaves its gradients on each rank, to be added to the next ones."""
        del parallel
        return contextlib.nullcontext()


ALONE = Ranks()


class Group(Ranks):
    """This process among several."""

    def __init__(self, environment: dict[str, str], seconds: float) -> None:
        """Reach the store where the ranks meet. Raises UserError where it does not answer."""
        self.rank, self.world, self.local = (int(environment[name]) for name in VARIABLES[:3])
        self.here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.restarted, self.seconds, self.meetings = attempt != "0", seconds, 0
        self.address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        hosts = self.hosts = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        patience = min(JOINING, seconds)
        store, own = (connect(environment, patience, hosts=host) for host in (hosts, False))
        # Keys of an earlier attempt, or of an earlier training of the same processes, must not be found.
        uses = store.add(f"resnetkit/{attempt}/{self.rank}", 1)
        self.store, own = (prefixed(f"resnetkit/{attempt}/use-{uses}", each) for each in (store, own))
        self.pulse = Pulse(own, self.rank)

    def begin(self) -> None:
        """Meet the others for the first time. Raises UserError where one does not come."""
        import torch
        import torch.distributed as dist

        self.meet(min(JOINING, self.seconds))
        backend = "gloo"
        if torch.cuda.is_available() and self.local < torch.cuda.device_count():
            torch.cuda.set_device(self.local)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(
            backend,
            store=prefixed("group", self.store),
            rank=self.rank,
            world_size=self.world,
            timeout=timedelta(seconds=self.seconds),
        )
        self.names = tuple(self.exchanged(socket.gethostname()))

    def meet(self, patience: float = SILENT) -> None:
        self.meetings += 1
        self.pulse.calls += 1
        key, pause = f"meeting/{self.meetings}", 0.001
        others = Others(self.store, self.rank, self.world)
        self.store.add(key, 1)
        while self.store.add(key, 0) < self.world:
            time.sleep(pause)
            pause = min(2 * pause, BEAT / 4)
            if pause == BEAT / 4:
                others.look()
                if self.store.check(["failed"]):
                    raise Elsewhere
                if gone := others.silent(patience):
                    raise self.missing(gone)

    def agreed(self, make: Callable[[], T]) -> T:
        import torch.distributed as dist

        box = [make() if self.first else None]
        self.meet()
        dist.broadcast_object_list(box)
        return box[0]  # type: ignore[return-value]

    def gathered(self, value: T) -> list[T]:
        import torch.distributed as dist

        self.pulse.calls += 1
        values: list[T] | None = [value] * self.world if self.first else None
        dist.gather_object(value, values)
        return values or []

    def exchanged(self, value: T) -> list[T]:
        import torch.distributed as dist

        self.pulse.calls += 1
        values = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def highest(self, *numbers: int) -> list[int]:
        import torch
        import torch.distributed as dist

        self.pulse.calls += 1
        tensor = torch.tensor(numbers)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def add(self, tensor: Tensor) -> None:
        import torch.distributed as dist

        self.pulse.calls += 1
        dist.all_reduce(tensor)

    def average_statistics(self, network: nn.Module) -> None:
        import torch
        from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

        # Those of frozen layers stay: the mean of three equal numbers may differ from them in the last bit.
        norms = [module for module in network.modules() if isinstance(module, BatchNorm) and module.training]
        own = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
        if own:
            flat = torch.cat(own)
            self.add(flat)
            flat /= self.world
            torch._foreach_copy_(own, list(torch.split(flat, [len(tensor) for tensor in own])))

    def parallel(self, network: nn.Module, blank: Tensor, *, skips: bool) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        self.pulse.calls += 1
        devices = [blank.device] if blank.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`broadcast_buffers`")  # older torch knows no other name for it
            made = DistributedDataParallel(
                network,
                device_ids=devices,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=skips,
            )
        # After the first pass torch packs the gradients anew, in the order in which they came. Another packing sums
        # those of three or more ranks in another order, so a resumed run must be past that when it begins, as the run
        # that never stopped is.
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.train()
        made(blank).sum().backward()
        network.zero_grad(set_to_none=True)
        network.load_state_dict(before)
        return made

    def holding(self, parallel: nn.Module) -> AbstractContextManager[None]:
        from torch.nn.parallel import DistributedDataParallel

        assert isinstance(parallel, DistributedDataParallel)
        return parallel.no_sync()

    def missing(self, gone: list[int]) -> UserError:
        """That these ranks are gone, as an error."""
        names = [f"rank {r}" + (f" on {self.names[r]}" if self.names else "") for r in gone[:8]]
        more = f" and {len(gone) - 8} more" if len(gone) > 8 else ""
        if not self.names:
            return UserError(
                f"{', '.join(names)}{more}: did not come to {self.address} within {min(JOINING, self.seconds):g} s; "
                "start every process that WORLD_SIZE counts, and look at what the others say"
            )
        return UserError(
            f"{', '.join(names)}{more}: not there any more (killed, or cut off from this network); the same command "
            "goes on from the last checkpoint"
        )

    def claim(self) -> bool:
        """Whether this rank is the first to fail, and so the one to say why; also when nobody can be asked."""
        if self.pulse.failed:
            return False
        answer: list[bytes] = []
        within(lambda: answer.append(self.store.compare_set("failed", "", str(self.rank))))
        return not answer or answer[0] == str(self.rank).encode()

    def fail(self, error: UserError) -> NoReturn:
        """Raise the error where this rank is the first to fail, else Elsewhere."""
        if not self.claim():
            raise Elsewhere from None
        error.chosen = True
        raise error

    def lost(self, error: RuntimeError) -> UserError:
        """Why an exchange with the other ranks failed. Raises Elsewhere where one of them has said it."""
        if self.pulse.failed:
            raise Elsewhere from None
        others, found = Others(self.store, self.rank, self.world), []

        def look() -> None:
            while not others.silent(BROKEN) and not self.store.check(["failed"]):
                others.look()
                time.sleep(BEAT / 4)
                if all(moment > others.began + 2 * BEAT for _, moment in others.last.values()):
                    break  # all of them count on
            found.append(self.store.check(["failed"]))

        if not within(look, 2 * BROKEN):
            return UserError(
                f"rank {self.rank} on {socket.gethostname()}: cut off from {self.address}, where the ranks meet; "
                "the same command goes on from the last checkpoint"
            )
        if found[0]:
            raise Elsewhere from None
        if gone := others.silent(BROKEN):
            return self.missing(gone)
        late = others.behind(self.pulse.calls) or [self.rank]
        return UserError(
            f"rank {', '.join(map(str, late))}: alive, but took no part for {self.seconds:g} s ({first_line(error)}); "
            f"look at that machine's disk and network, or wait longer with {TIMEOUT}=SECONDS"
        )

    def leave(self, *, failed: bool) -> None:
        """Let go of the others."""
        import torch
        import torch.distributed as dist

        self.pulse.end()
        waits = failed and torch.cuda.is_available()  # NCCL would, for those that are gone
        if dist.is_initialized() and not waits:
            dist.destroy_process_group()
        if self.hosts and failed:  # the store ends with this process: the others must have read there that it failed
            time.sleep(2 * BEAT)
        if not failed:
            self.go_last()

    def go_last(self) -> None:
        """The rank that keeps the store goes after the others, so that none of them asks a store that is ending."""
        with contextlib.suppress(RuntimeError):
            gone, until = self.store.add("left", 1), time.monotonic() + BROKEN
            while self.hosts and gone < self.world and time.monotonic() < until:
                time.sleep(BEAT / 100)
                gone = self.store.add("left", 0)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started, while the block runs; `ALONE` without torchrun.

    Of a UserError raised inside, the first rank to fail raises it with `chosen` set, the others raise Elsewhere; a lost
    connection becomes a UserError that names the rank. Raises UserError where the ranks do not find each other.
    """
    environment = torchrun()
    if environment is None:
        yield ALONE
        return
    group, failed = Group(environment, patience()), True
    try:
        group.begin()
        yield group
        failed = False
    except UserError as error:
        group.fail(error)
    except RuntimeError as error:
        if not is_broken(error):
            raise
        group.fail(group.lost(error))
    except (Elsewhere, MemoryError):
        raise
    except BaseException:  # a request to stop, which all of them follow
        failed = False
        raise
    finally:
        group.leave(failed=failed)


def is_broken(error: RuntimeError) -> bool:
    """Whether an error is of the connection between ranks."""
    from torch.distributed import DistError

    words = ("gloo", "Connection closed", "Connection reset", "NCCL", "Broken pipe")
    return isinstance(error, DistError) or any(word in str(error) for word in words)
