"""A network without the batch normalisations that follow its convolutions: the same answers, with less to do."""

from __future__ import annotations

import warnings
from threading import Lock
from typing import Any

from torch import nn

from resnetkit.model import ResNet

# While torch.fx traces one network it replaces the call of all modules, so no other one may answer meanwhile.
TRACING = Lock()


def folded(network: ResNet) -> Any:
    """A copy in evaluation mode."""
    with warnings.catch_warnings():
        # torch's module makes script modules when it is imported, in a way that torch deprecates.
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.", category=DeprecationWarning)
        from torch.fx.experimental.optimization import fuse
    with TRACING:
        copy: Any = fuse(network.eval())
    for module in copy.modules():
        if isinstance(module, nn.BatchNorm2d):  # of a network that normalises before it convolves
            module.num_batches_tracked = None  # whole numbers, which only training needs
    return copy
