"""Heat maps of the server, drawn for real."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from prediction_samples import CLASSES, COLOUR, make_model, picture
from resnetkit.engines.folding import TRACING
from resnetkit.serving.heat import drawn, heat_maps
from resnetkit.weights import save_model

pytest.importorskip("captum", reason="needs captum, the extra 'explain'")


def test_a_map_waits_while_another_network_is_traced(tmp_path: Path) -> None:
    """torch.fx replaces the call of every module in the process while it traces one."""
    assert heat_maps() is drawn
    path = tmp_path / "m.safetensors"
    save_model(make_model(), path)
    data = picture(tmp_path / "a.png").read_bytes()
    begin = time.monotonic()
    first = drawn(path, data, CLASSES[0])
    usual = time.monotonic() - begin
    with ThreadPoolExecutor(1) as pool:
        with TRACING:
            waiting = pool.submit(drawn, path, data, CLASSES[0])
            with pytest.raises(TimeoutError):
                waiting.result(usual + 1)
        assert waiting.result() == first
    assert Image.open(io.BytesIO(first)).size == (COLOUR.size, COLOUR.size)
