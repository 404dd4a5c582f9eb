"""State dicts of others, as they lie in files: safetensors, or pickles of torch.save that may hold code."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import torch
from torch import Tensor

from resnetkit import tensorfile
from resnetkit.errors import UserError
from resnetkit.peers.names import unwrapped

SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".bin", ".tar", ".ckpt")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or a pickle of torch.save, by the names they have without wrappers.

    Undoes what others put around them: a dict under `state_dict` or `model`, one prefix before all names, `linear` for
    `fc`. Half precision becomes fp32. Raises UserError for a pickle that would run code, naming what it wanted.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        raise UserError(f"{path}: a folder without config.json; give the file with the weights")
    tensors, meta = tensorfile.read(path) if path.suffix == ".safetensors" else (read_pickle(path), None)
    if meta is not None:
        raise UserError(f"{path}: is a file of resnetkit already, nothing to import; use it as it is")
    plain = {short: tensors[name] for name, short in unwrapped(tensors).items()}
    return {
        f"fc.{name[7:]}" if name.startswith("linear.") else name: tensor.float()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in plain.items()
    }


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The state dict inside a file of torch.save, loaded with `weights_only`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read raises
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = str(error).partition("GLOBAL ")[2].split(" ")[0]
        if not wanted:
            raise UserError(f"{path}: not a file of torch.save, or damaged") from None
        raise UserError(f"{path}: refused: opening it would run code ({wanted}); ask for a .safetensors file") from None
    except Exception as error:  # bytes of any kind make the unpickler raise errors of any kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a file of torch.save, or damaged ({reason})") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UserError(f"{path}: holds no state dict (a mapping from parameter names to tensors)")
    return content
