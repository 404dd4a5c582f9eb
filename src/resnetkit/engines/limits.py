"""What the processor can do at most, as far as that can be measured: a matrix product and copying. Without torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

SIDE = 1024  # of the matrices
COPIED = 256 << 20  # bytes, far more than caches hold
SECONDS = 0.5  # for each measurement
REST = 0.1  # until the threads of the one before have gone to sleep


def measured(threads: int) -> dict[str, float]:
    """`sgemm`: GFLOP/s of the best float32 matrix product at hand; `copy`: GB/s, bytes read and bytes written.

    numpy takes as many threads as its environment said when it was imported: `worker.Worker` sees to that.
    """
    products = [numpy_product(), runtime_product(threads)]
    seconds = []
    for product in products:
        if product is not None:
            seconds.append(shortest(product))
            time.sleep(REST)
    return {"sgemm": 2 * SIDE**3 / min(seconds) / 1e9, "copy": 2 * COPIED / copying(threads) / 1e9}


def shortest(run: Callable[[], Any], seconds: float = SECONDS) -> float:
    """Of as many runs as fit into `seconds`, three at least: the one that others disturbed least."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def matrix() -> Any:
    return np.random.Generator(np.random.Philox(0)).random((SIDE, SIDE), dtype=np.float32)


def numpy_product() -> Callable[[], Any]:
    a, b = matrix(), matrix()
    return lambda: a @ b


def runtime_product(threads: int) -> Callable[[], Any] | None:
    """ONNX Runtime's, which on some processors is far ahead of numpy's; None where it is not installed."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in ("a", "c")]
    node, b = helper.make_node("MatMul", ["a", "b"], ["c"]), numpy_helper.from_array(matrix(), "b")
    graph = helper.make_graph([node], "product", sides[:1], sides[1:], [b])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"a": matrix()}
    return lambda: session.run(["c"], given)


def copying(threads: int) -> float:
    """Seconds for `COPIED` bytes, each thread its part: numpy copies in one, and lets go of the interpreter lock."""
    a, b = np.ones(COPIED, dtype=np.uint8), np.zeros(COPIED, dtype=np.uint8)
    parts = [slice(COPIED * index // threads, COPIED * (index + 1) // threads) for index in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return shortest(lambda: list(pool.map(lambda part: np.copyto(b[part], a[part]), parts)))
