"""Batch normalisation with exact statistics: each layer's mean and variance over all training pictures.

Training leaves moving averages over its last batches, of a network that was still changing and of augmented pictures.
The authors' released networks carry averages over training pictures instead, taken after the training; with them
batch normalisation is a fixed affine layer (1512.03385, appendix A).
"""

from __future__ import annotations

import copy
import os
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from resnetkit.data.loader import Reader, default_threads, evaluation_batches, order
from resnetkit.data.pictures import Data, Indices, name_bad
from resnetkit.errors import Diverged, UserError
from resnetkit.evaluation import as_trained, free_file
from resnetkit.model import ResNet
from resnetkit.protocol import BATCH, Progress, Scoring
from resnetkit.weights import ModelFile, open_model, place, save_model

SLICE = 8  # pictures whose responses are summed up at a time, because doubles of a whole batch would fill the memory


class Totals:
    """Sums of x and x^2 per channel, in double, over every position of every picture."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.count = 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        """Responses (N, C, H, W)."""
        self.count += x.numel() // x.shape[1]
        for part in torch.split(x, SLICE):
            wide = part.double()
            self.sums += torch.stack([wide.sum((0, 2, 3)), wide.square_().sum((0, 2, 3))])

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance per channel, which is the one that torch keeps."""
        mean = self.sums[0] / self.count
        spread = self.sums[1] - self.sums[0] * mean
        return mean, (spread / (self.count - 1)).clamp(min=0)


def recompute(network: ResNet, reader: Reader, indices: Indices, batch: int, progress: Progress | None) -> ResNet:
    """A copy of the network with exact statistics over the pictures `indices`; the network itself stays as it is.

    Every layer sees what it sees in training, so those before it normalise by the statistics of a batch. Pictures come
    in a random order that is always the same: folders, which are sorted by class, would make batches of one class.
    Raises UserError for a picture that cannot be read and for responses that are no numbers.
    """
    device = next(network.parameters()).device
    working, result = copy.deepcopy(network).train(), copy.deepcopy(network).eval()
    totals = {}
    for name, module in working.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            totals[name] = Totals(module.num_features, device)
            module.register_forward_pre_hook(partial(note, totals[name]))
    shuffled, done = indices[order(0, 0, len(indices))], 0
    for part in evaluation_batches(reader, shuffled, batch=even_batch(len(indices), batch)):
        if part.bad:
            raise UserError(name_bad(reader.data, part.bad, "take another split"))
        with torch.no_grad():
            working(reader.preprocess.normalise(part.to(device)[0]))
        done += len(part.indices)
        if progress is not None:
            progress(Scoring(done, len(indices), 1, 1))
    for name, total in totals.items():
        if not total.sums.isfinite().all():
            raise Diverged(f"{name}: its responses are no numbers; train the network anew with a smaller optim.lr")
        layer = result.get_submodule(name)
        mean, variance = total.statistics()
        layer.get_buffer("running_mean").copy_(mean)
        layer.get_buffer("running_var").copy_(variance)
    return result


def note(total: Totals, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
    """What goes into a layer, added to its totals; a hook."""
    total.add(inputs[0])


def even_batch(n: int, most: int) -> int:
    """The largest batch of up to `most` that leaves no small one at the end, whose statistics would be rough.

    Batch normalisation also refuses a single response, which one picture is where the map has shrunk to 1x1.
    """
    return next((size for size in range(most, 1, -1) if not 0 < n % size < max(2, size / 2)), n)


def recompute_statistics(
    model: str | Path | ModelFile,
    data: str | Path | Data | None = None,
    *,
    out: str | Path,
    split: str = "train",
    device: str = "cpu",
    batch: int = BATCH,
    progress: Progress | None = None,
) -> ModelFile:
    """Write a model file of the same network with exact batch statistics. It has no scores: those of the old one may
    no longer hold.

    data      anything `open_data` takes; None: the pictures that the model's run was trained on
    split     which part
    progress  is called with a `Scoring` after every batch
    Raises UserError.
    """
    path = free_file(out)
    if path.suffix != ".safetensors":
        raise UserError(f"{out}: a model file ends in .safetensors; choose another name")
    file = model if isinstance(model, ModelFile) else open_model(model)
    if not any(isinstance(module, nn.BatchNorm2d) for module in file.network.modules()):
        raise UserError(f"{file.network.arch.name}: this network has no batch normalisation, so there is nothing to do")
    found = data if isinstance(data, Data) else as_trained(model, data)
    indices = found.select(split)
    if len(indices) < 2:
        raise UserError(f"{found.spec}: {split} has {len(indices)} pictures; batch statistics need two at least")
    reader = Reader(found, file.preprocess, threads=default_threads())
    network = recompute(place(file.network, torch.device(device)), reader, indices, batch, progress)
    about = {
        "what": "mean and variance over all centre crops",
        "model": None if isinstance(model, ModelFile) else os.fspath(model),
        "data": found.spec,
        "split": split,
        "pictures": len(indices),
        "batch": even_batch(len(indices), batch),
    }
    provenance = {**file.provenance, "batch_statistics": about}
    made = ModelFile(network.cpu(), file.classes, file.preprocess, provenance=provenance)
    try:
        save_model(made, path)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place or make room") from None
    return made
