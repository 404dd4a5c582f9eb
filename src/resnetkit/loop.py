"""The training loop and the state that a checkpoint holds.

A run that is stopped, wherever, and resumed ends with the same bits as one that was not: all randomness is a function
of (seed, epoch, position), so the state is the weights, the momentum, the average, the step and the sums so far.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from resnetkit import checkpoint, runs
from resnetkit.data.loader import Batch, Reader, mixing, side_at, training_batches
from resnetkit.data.pictures import Data, class_counts
from resnetkit.distributed import ALONE, Ranks
from resnetkit.errors import Diverged
from resnetkit.evaluation import Score, describe_protocol, score
from resnetkit.events import Embedding, EpochDone, Found, Progress, Stopped
from resnetkit.losses import objective_of
from resnetkit.mixing import mixed, thin
from resnetkit.model import Architecture, ResNet
from resnetkit.normalising import set_statistics
from resnetkit.optim import (
    Averaged,
    buffers,
    freeze_parts,
    learning_rate,
    make_optimizer,
    restore_buffers,
    train_mode,
)
from resnetkit.passes import Pass, compiled, recompute_blocks
from resnetkit.recipe import Recipe
from resnetkit.resolve import Resolved
from resnetkit.weights import ModelFile, place, save_model

LOOK_EVERY = 10  # steps between looks at the loss on a GPU, each of which waits for the device
RECENT = 50  # steps over which speed is measured


def fresh(arch: Architecture, seed: int) -> ResNet:
    """A network as training from scratch begins with it; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(arch)


class State:
    """Everything that training changes."""

    def __init__(self, resolved: Resolved) -> None:
        recipe = resolved.recipe
        self.device = torch.device(str(recipe.run.device))
        self.network = place(fresh(resolved.arch, recipe.run.seed), self.device, recipe.run.channels_last)
        set_statistics(self.network, recipe.optim, self.device)
        freeze_parts(self.network, recipe.optim.freeze)
        self.optimizer = make_optimizer(self.network, recipe.optim)
        self.average = Averaged(self.network, recipe.optim.ema) if recipe.optim.ema else None
        if recipe.run.activation_checkpointing:  # after the average was copied from the network, which needs none
            recompute_blocks(self.network)
        self.step = 0
        self.best = -1.0  # share of correct answers of the best epoch so far
        self.sums = torch.zeros(3, dtype=torch.float64)  # of this epoch, all ranks: loss, correct, pictures

    @property
    def evaluated(self) -> ResNet:
        """The network whose score counts."""
        return self.average.network if self.average else self.network

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for a checkpoint."""
        named = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.average:
            named |= {f"average.{name}": tensor for name, tensor in self.average.network.state_dict().items()}
        return {**named, **buffers(self.optimizer, self.network), "sums": self.sums}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """The inverse of `tensors`, with the numbers of the checkpoint's metadata."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        if self.average:
            self.average.network.load_state_dict(part("average."))
        restore_buffers(self.optimizer, self.network, tensors, meta["step"])
        self.sums.copy_(tensors["sums"])
        self.step, self.best = meta["step"], meta["best"]


class Loop:
    """One run's training from its state's step to the last, in its folder, where rank 0 alone writes."""

    def __init__(
        self, folder: Path, resolved: Resolved, data: Data, reader: Reader, state: State, ranks: Ranks = ALONE
    ) -> None:
        self.folder, self.resolved, self.data, self.reader, self.state = folder, resolved, data, reader, state
        self.ranks, self.writer = ranks, checkpoint.Writer()
        self.module: nn.Module = state.network  # `run` makes it that of all ranks
        self.forward: Pass = self.module
        recipe = self.recipe = resolved.recipe
        self.batch, self.steps = int(recipe.optim.batch), recipe.schedule.steps
        self.per_epoch = len(data.splits["train"]) // self.batch
        counts = class_counts(data, data.splits["train"])
        self.objective = objective_of(counts, data.sets, recipe.optim, state.device)
        self.epochs = math.ceil(self.steps / self.per_epoch)
        self.monitored = next((name for name in (recipe.run.watch, "val", "test") if name in data.splits), None)
        self.saved_step, self.saved_at = state.step, time.monotonic()
        self.unread: list[tuple[int, Tensor]] = []  # step, and sums over this rank's part of its batch

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go to a checkpoint's step, and take back what was logged after it."""
        self.state.restore(tensors, meta)
        self.saved_step = self.state.step
        if self.ranks.first:
            with runs.resumable(self.folder):
                runs.cut_log(self.folder, self.state.step)

    def run(self) -> Iterator[Embedding | Found | Progress | EpochDone]:
        """Train to the end. Raises Stopped on SIGINT or SIGTERM, UserError when the loss is no longer a number."""
        state = self.state
        with stop_signals() as stop, contextlib.ExitStack() as ending:
            ending.callback(self.writer.wait)
            skips = self.recipe.optim.stochastic_depth > 0
            self.module = self.ranks.parallel(state.network, self.blank(), skips=skips)
            run = self.recipe.run
            self.forward = compiled(self.module, graphs=run.cuda_graphs) if run.compile else self.module
            while state.step < self.steps:
                epoch, first = divmod(state.step, self.per_epoch)
                began = time.monotonic()
                yield from self.epoch(epoch, first, stop)
                yield self.end_epoch(epoch, time.monotonic() - began, state.step - epoch * self.per_epoch - first)
                signum, _ = self.wanted(stop)
                if signum:
                    self.save()
                    self.stop(signum)

    def blank(self) -> Tensor:
        """A black input."""
        spec = self.reader.preprocess
        return torch.zeros(2, spec.channels, spec.size, spec.size, device=self.state.device)

    def stop(self, signum: int) -> NoReturn:
        """End after a signal, when the checkpoint of now is there."""
        self.writer.wait()
        self.writer.check()
        raise Stopped(signum, self.folder, self.state.step)

    def wanted(self, stop: list[int]) -> tuple[int, int]:
        """The signal to stop for, 0 for none, and whether a checkpoint is due, of any rank."""
        signum, due = self.ranks.highest(stop[0] if stop else 0, int(self.due()))
        return signum, due

    def epoch(self, epoch: int, first: int, stop: list[int]) -> Iterator[Progress]:
        """The rest of an epoch, from its step `first` on."""
        state, recipe = self.state, self.recipe
        progress = epoch * self.per_epoch / self.steps
        reader = self.reader.at(side_at(recipe.augment, progress, self.reader.preprocess.size))
        train_mode(state.network, recipe.optim)
        batches = training_batches(
            reader,
            self.data.splits["train"],
            recipe.augment,
            seed=recipe.run.seed,
            epoch=epoch,
            batch=self.batch,
            start=first,
            share=self.ranks.share(self.batch),
            sampling=recipe.data.sampling,
        )
        clock = [time.monotonic()]
        with contextlib.closing(batches):
            for batch in batches:
                rate = self.rate(state.step)
                measured = self.take_step(batch, epoch, rate)
                state.step += 1
                self.unread.append((state.step, measured))
                clock = [*clock[-RECENT:], time.monotonic()]
                looking = state.device.type == "cpu" or state.step % LOOK_EVERY == 0
                if looking:
                    shown = self.look(rate)
                    yield self.progress(epoch, shown, rate, clock)
                if state.step == self.steps:
                    break
                # The last step of an epoch saves after its evaluation, or a resumed run would skip that.
                if state.step % self.per_epoch and (looking or self.ranks is ALONE):
                    signum, due = self.wanted(stop)
                    if signum or due:
                        self.look(rate)
                        self.save()
                    if signum:
                        self.stop(signum)
        self.look(self.rate(state.step - 1))

    def rate(self, step: int) -> float:
        """The learning rate of step 0 … steps - 1."""
        schedule = self.recipe.schedule
        return learning_rate(schedule, float(self.recipe.optim.lr), step, self.steps, int(schedule.warmup_steps))

    def take_step(self, batch: Batch, epoch: int, rate: float) -> Tensor:
        """Forward and backward over this rank's share of a batch in parts, then one step.

        Returns the sums of loss, correct answers and pictures of the share, unread.
        """
        state, optim = self.state, self.recipe.optim
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        state.optimizer.zero_grad(set_to_none=True)
        draw = mixing(self.recipe.run.seed, epoch, state.step)
        if optim.stochastic_depth:
            thin(state.network, optim.stochastic_depth, draw)
        total = torch.zeros(3, dtype=torch.float64, device=state.device)
        pieces = [tensor.chunk(optim.accumulate) for tensor in batch.to(state.device)]
        parts = len(pieces[0])
        for _ in range(self.ranks.rank * parts):  # what is drawn for the parts of the ranks before this one
            mixed(torch.empty(0, 1, 1, 1), self.recipe.augment, draw)
        for left, (pictures, y) in zip(reversed(range(parts)), zip(*pieces, strict=True), strict=True):
            x = self.reader.preprocess.normalise(pictures)
            x, share = mixed(x, self.recipe.augment, draw)
            with self.ranks.holding(self.module) if left else contextlib.nullcontext():
                with torch.autocast(state.device.type, torch.bfloat16, enabled=self.recipe.run.precision == "bf16"):
                    logits = self.forward(x)
                logits = logits.float()
                loss = self.objective.loss(logits, y, share)
                # The ranks' gradients are averaged: what is of the share's pictures must be of the batch's.
                torch.autograd.backward(loss * (len(y) * self.ranks.world / self.batch))
            with torch.no_grad():
                correct = self.objective.right(logits, y).sum()
                seen = torch.full_like(loss, len(y), dtype=torch.float64)
                total += torch.stack([loss.double() * len(y), correct.double(), seen])
        for parameter in state.network.parameters():
            if parameter.requires_grad and parameter.grad is None:  # of a skipped block; fused SGD wants them all
                parameter.grad = torch.zeros_like(parameter)
        if optim.clip:
            torch.nn.utils.clip_grad_norm_(state.network.parameters(), optim.clip)
        state.optimizer.step()
        self.ranks.average_statistics(state.network)
        if state.average:
            state.average.update(state.network, state.step)
        return total

    def look(self, rate: float) -> float:
        """Read and log what the last steps gave, which waits for the device. Raises Diverged at the first bad loss."""
        shown = math.nan
        if not self.unread:
            return shown
        sums = torch.stack([measured for _, measured in self.unread]).cpu()
        self.ranks.add(sums)
        for (step, _), total in zip(self.unread, sums, strict=True):
            loss, correct, _ = total.tolist()
            shown = loss * (1 / self.batch)
            if not math.isfinite(shown):
                self.writer.wait()
                kept = [self.folder, *checkpoint.saved(self.folder)]
                raise Diverged(
                    f"step {step:,}: the loss is {shown} at learning rate {rate:g}; {kept[-1]} is the last good "
                    "checkpoint; train anew with a smaller optim.lr, or with optim.clip=1",
                    step,
                )
            self.state.sums += total
            if self.ranks.first:
                with runs.resumable(self.folder):
                    runs.append_step(self.folder, step, shown, int(correct))
        self.unread.clear()
        return shown

    def progress(self, epoch: int, loss: float, rate: float, clock: list[float]) -> Progress:
        state = self.state
        every = 1 if state.device.type == "cpu" else LOOK_EVERY
        seconds = (clock[-1] - clock[0]) / (len(clock) - 1)
        left = seconds * (self.steps - state.step) if state.step >= every else math.nan
        speed = self.batch / max(seconds, 1e-9)
        return Progress(epoch + 1, self.epochs, state.step, self.steps, loss, rate, speed, left)

    def end_epoch(self, epoch: int, seconds: float, steps: int) -> EpochDone:
        """Evaluate when it is time, write the log line, keep the best weights, and save."""
        state, recipe = self.state, self.recipe
        whole = state.step % self.per_epoch == 0
        result = None
        if self.monitored and (state.step == self.steps or (whole and (epoch + 1) % recipe.run.eval_epochs == 0)):
            protocol = describe_protocol(self.data, self.monitored, self.reader.preprocess)
            pictures = self.data.splits[self.monitored]
            found = score(state.evaluated, self.reader, pictures, protocol=protocol, ranks=self.ranks)
            result = {"split": self.monitored, **found.summary}
            with runs.resumable(self.folder):
                self.keep_best(found)
        loss, correct, seen = state.sums.tolist()
        rate = self.rate(state.step - 1)
        speed = steps * self.batch / max(seconds, 1e-9)
        line = EpochDone(epoch + 1, self.epochs, state.step, rate, loss / seen, correct / seen, seconds, speed, result)
        if self.ranks.first:
            with runs.resumable(self.folder):
                runs.append_log(self.folder, asdict(line))
        state.sums.zero_()
        if state.step < self.steps and self.wanted([])[1]:
            self.save()
        return line

    def keep_best(self, found: Score) -> None:
        """Keep the weights of the best epoch beside the checkpoints, as a model file."""
        if found.headline > self.state.best:
            self.state.best = found.headline
            if not self.ranks.first:
                return
            path = self.folder / checkpoint.FOLDER / "best.safetensors"
            classes, preprocess = self.data.classes, self.reader.preprocess
            about = {"step": self.state.step, found.measure: found.headline, "split": self.monitored}
            many = self.data.sets is not None
            save_model(ModelFile(self.state.evaluated, classes, preprocess, about, multi_label=many), path)

    def due(self) -> bool:
        """Whether a checkpoint is due, by steps or by time. Raises UserError where the one before was not written."""
        self.writer.check()
        run = self.recipe.run
        waited = time.monotonic() - self.saved_at
        return self.state.step - self.saved_step >= run.checkpoint_steps or waited >= 60 * run.checkpoint_minutes

    def begin(self, folder: Path) -> None:
        """Write the first checkpoint, before there is a run to resume. Raises OSError."""
        checkpoint.write(folder, 0, self.state.tensors(), self.about())

    def save(self) -> None:
        """Begin to write a checkpoint of now. Raises UserError where the one before could not be written."""
        if self.ranks.first:
            self.writer.save(self.folder, self.state.step, self.state.tensors(), self.about())
        self.saved_step, self.saved_at = self.state.step, time.monotonic()

    def about(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors and step."""
        return {
            "best": self.state.best,
            "architecture": asdict(self.resolved.arch),
            "preprocess": self.resolved.preprocess.to_dict(),
        }


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that receives SIGINT and SIGTERM while the block runs; in threads other than the main one, nothing."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(signum: int, _frame: FrameType | None) -> None:
        caught.append(signum)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def determinism(recipe: Recipe) -> Iterator[None]:
    """Only deterministic kernels while the block runs, when the recipe asks for them."""
    before = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    if recipe.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not recipe.run.deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark
