"""The Hugging Face hub, through its own client (extra `hub`): its cache, its offline mode, its tokens.

Nothing here runs unless somebody names a repository, and of that its few files are asked for.
"""

from __future__ import annotations

import re
from pathlib import Path

from resnetkit.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that there is
OPTIONAL = ("preprocessor_config.json",)


def fetch(repository: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """The folder in the hub's cache with the repository's config and weights; its name is the commit.

    revision   a branch, tag or commit; None: main
    offline    look into the cache and nowhere else, as with HF_HUB_OFFLINE=1
    Raises UserError: not there, not allowed, not reachable, or the extra is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError:
        raise UserError(f"{repository}: to ask the hub, install its client: pip install 'resnetkit[hub]'") from None

    def get(name: str) -> Path:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=offline))

    offline = offline or constants.HF_HUB_OFFLINE

    def get_first(names: tuple[str, ...]) -> Path | None:
        for name in names:
            try:
                return get(name)
            except errors.EntryNotFoundError as error:
                if isinstance(error, errors.LocalEntryNotFoundError) and not offline:
                    raise  # not absent, but out of reach
        return None

    at = f"{repository}{f' at {revision}' if revision else ''}"
    try:
        config = get(CONFIG)
        get_first(OPTIONAL)
        weights = get_first(WEIGHTS)
    except errors.GatedRepoError:
        raise UserError(
            f"{at}: asks for an agreement; accept it on its page, then log in with: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repository}: has no revision {revision!r}; leave --revision out for main") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{repository}: no such file here and no such repository on the hub, or a private one"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise UserError(f"{at}: not in the hub's cache, and the hub cannot be reached or must not be asked") from None
    except errors.EntryNotFoundError:
        raise UserError(f"{at}: holds no {CONFIG}; is it a model of timm or Transformers?") from None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError, ValueError) as error:
        raise UserError(f"{at}: the hub gave no answer that can be used ({first_line(error)})") from None
    if weights is None:
        where = f"the copy of {at} in the hub's cache" if offline else at
        raise UserError(f"{where}: holds neither {' nor '.join(WEIGHTS)}; is it a model of timm or Transformers?")
    return config.parent


def first_line(error: Exception) -> str:
    """What a client's error says, without the addresses and hints below."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
