"""What several test files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from resnetkit import cli

settings.register_profile("resnetkit", deadline=None)  # no test measures time; machines are busy
settings.load_profile("resnetkit")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures beside a checkout, which a clone does not have."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, real pictures that are not part of the repository")
    return folder


@pytest.fixture
def resnet(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ending:
            cli.main(arguments)
        out, err = capfd.readouterr()
        return int(ending.value.code or 0), out, err

    return run
