"""Engines as people call them, each in a process of its own: what `engines.py` compares with.

    python benchmarks/peers.py

speaks the protocol of `resnetkit.engines.worker`: a line of JSON in, a line out. A peer gets its input ready-made,
float32 (N, 3, 224, 224); what making it of uint8 pictures takes, a few lines of NumPy, is timed apart.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.engines.worker import memory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Run = Callable[[NDArray[np.float32]], Any]
SIZE = 224
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
SCALE, SHIFT = (1 / 255 / STD).reshape(3, 1, 1), (-MEAN / STD).reshape(3, 1, 1)


def timm_eager(name: str, threads: int) -> Run:
    """As timm's own validate.py and its examples run it: NCHW, batch normalisation not folded."""
    import torch

    from torchvision_shim import peer

    torch.set_num_threads(threads)
    network = peer("timm").create_model(name, pretrained=False).eval()

    def run(x: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(x)).numpy()

    return run


def torch_channels_last(name: str, threads: int) -> Run:
    import torch

    import resnetkit

    torch.set_num_threads(threads)
    network = resnetkit.ResNet(resnetkit.architecture(name)).eval().to(memory_format=torch.channels_last)

    def run(x: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(x).contiguous(memory_format=torch.channels_last)).numpy()

    return run


def torch_compile(name: str, threads: int) -> Run:
    """inductor with the weights frozen into the code."""
    import torch
    import torch._inductor.config

    import resnetkit

    torch.set_num_threads(threads)
    torch._inductor.config.freezing = True
    network = resnetkit.ResNet(resnetkit.architecture(name)).eval()
    compiled = torch.compile(network)

    def run(x: NDArray[np.float32]) -> Any:
        with torch.no_grad():  # freezing does not know inference mode
            return compiled(torch.from_numpy(x)).numpy()

    return run


def onnx_runtime(path: str, threads: int) -> Run:
    """Default settings; the number of threads is the default too, one for each core."""
    del threads
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


def openvino(path: str, threads: int) -> Run:
    """Default settings."""
    del threads
    import openvino as ov

    compiled = ov.Core().compile_model(path, "CPU")
    return lambda x: compiled(x)[0]


def mnn(path: str, threads: int) -> Run:
    """Default settings but for the number of threads, which is 4 else, on any machine."""
    import MNN

    interpreter = MNN.Interpreter(path)
    session = interpreter.createSession({"backend": "CPU", "numThread": threads})
    given = interpreter.getSessionInput(session)

    def run(x: NDArray[np.float32]) -> Any:
        if given.getShape() != x.shape:
            interpreter.resizeTensor(given, x.shape)
            interpreter.resizeSession(session)
        given.copyFrom(MNN.Tensor(x.shape, MNN.Halide_Type_Float, x, MNN.Tensor_DimensionType_Caffe))
        interpreter.runSession(session)
        return interpreter.getSessionOutput(session).getNumpyData().copy()

    return run


def normalised(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (N, 224, 224, 3) as float32 (N, 3, 224, 224), with no pass over the data that could be saved."""
    x = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), dtype=np.float32)
    x *= SCALE
    x += SHIFT
    return x


PEERS = {
    "timm eager": timm_eager,
    "torch channels_last": torch_channels_last,
    "torch.compile": torch_compile,
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
    "MNN": mnn,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    run: Run = lambda x: x  # noqa: E731 - replaced by the first request
    before = 0
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            before = memory()["VmRSS"]
            run = PEERS[request["start"]](request["path"], request["threads"])
            answer: dict[str, Any] = {}
        else:
            pictures = np.random.default_rng(0).integers(0, 256, (request["run"], SIZE, SIZE, 3), dtype=np.uint8)
            taken, normalising = [], []
            for _ in range(request["times"]):
                begin = time.perf_counter()
                x = normalised(pictures)
                normalising.append(time.perf_counter() - begin)
                run(x)
                taken.append(time.perf_counter() - begin - normalising[-1])
            now = memory()
            answer = {"seconds": taken, "normalising": normalising}
            answer |= {"memory": now["VmRSS"] - before, "peak": now["VmHWM"] - before}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
