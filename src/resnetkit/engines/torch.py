"""torch itself, with batch normalisation folded away: needs nothing installed, and runs on GPUs."""

from __future__ import annotations

import torch

from resnetkit.engines.engine import Engine, Logits, Pixels
from resnetkit.engines.folding import TRACING, folded
from resnetkit.weights import ModelFile, place


def load(model: ModelFile, threads: int, device: str = "cpu") -> Engine:
    """The engine of a model file, on a device. `threads` are those of the whole process."""
    if device == "cpu":
        torch.set_num_threads(threads)
    network, preprocess = place(folded(model.network), torch.device(device)), model.preprocess

    def run(pictures: Pixels) -> Logits:
        with torch.inference_mode(), TRACING:
            x = preprocess.normalise(torch.from_numpy(pictures).to(device))
            logits: Logits = network(x).float().cpu().numpy()
        return logits

    return run
