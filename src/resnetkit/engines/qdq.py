"""An ONNX graph of a network in int8, in the form called QDQ: QuantizeLinear and DequantizeLinear around every layer.

ONNX Runtime and OpenVINO both turn that form into integer kernels. Weights have a scale for each output channel and
7 bits, |w| <= 64: without VNNI an x86 processor adds pairs of products of uint8 and int8 in 16 bits, and 2 x 255 x 64
fits into them, 2 x 255 x 127 does not. So every processor computes the same sums, and none loses speed by it. Responses
are uint8 with one scale a tensor, between the smallest and the largest value on the calibration pictures.

ONNX Runtime's other ways to find ranges are percentiles and entropy. On two trained networks none of them was ahead of
this one by more than chance, and one percentile dropped by more than the gate allows (results/int8.json).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from resnetkit.engines.onnxruntime import imported

WEIGHT_BITS, ACTIVATION_BITS, METHOD = 7, 8, "minimum and maximum"
# What is a layer of its own, and may be left in fp32; and what goes along with the layer before it.
LAYERS = ("Conv", "Gemm", "Add", "Mul", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool")
ALONG = ("Relu", "Flatten", "Pad")
# The picture's normalisation: in int8 its two steps would each round, and nothing would be faster.
NORMALISATION = "preprocess."


def layers(graph: Path) -> dict[str, list[str]]:
    """The names of the nodes of each layer, which has the name of its first one."""
    import onnx

    found: dict[str, list[str]] = {}
    makers: dict[str, str] = {}  # value: the layer it comes from
    for node in onnx.load(graph, load_external_data=False).graph.node:
        if node.name.startswith(NORMALISATION):
            continue
        layer = node.name if node.op_type in LAYERS else makers.get(node.input[0])
        if layer is not None and node.op_type in (*LAYERS, *ALONG):
            found.setdefault(layer, []).append(node.name)
            makers[node.output[0]] = layer
    return found


def ranges(graph: Path, batches: Iterable[NDArray[Any]], working: Path) -> Any:
    """The smallest and the largest value of every tensor on these inputs; batches are read one at a time.

    working   a folder for what is made on the way
    """
    imported()
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    calibrator = create_calibrator(
        graph,
        [*LAYERS, *ALONG],
        augmented_model_path=str(working / "calibrating.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )
    name = calibrator.infer_session.get_inputs()[0].name
    for batch in batches:
        # A reader of one batch each: given one reader of all of them, the calibrator keeps what each of them gave.
        calibrator.collect_data(Once({name: batch}))
    return calibrator.compute_data()


class Once:
    """What ONNX Runtime's calibrators read from: one batch, then nothing."""

    def __init__(self, inputs: dict[str, NDArray[Any]]) -> None:
        self.inputs: dict[str, NDArray[Any]] | None = inputs

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        inputs, self.inputs = self.inputs, None
        return inputs


def quantised(graph: Path, found: Any, left: Collection[str] = ()) -> bytes:
    """The graph in int8 by the ranges `found`, all of it but the nodes `left`, as the bytes of an ONNX file."""
    imported()
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    network = onnx.shape_inference.infer_shapes(onnx.load(graph))
    normalising = [node.name for node in network.graph.node if node.name.startswith(NORMALISATION)]
    quantizer = QDQQuantizer(
        network,
        per_channel=True,
        reduce_range=WEIGHT_BITS == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=found,
        nodes_to_quantize=[],
        nodes_to_exclude=[*normalising, *left],
        op_types_to_quantize=[*LAYERS, *ALONG],
        extra_options={},
    )
    quantizer.quantize_model()
    data: bytes = quantizer.model.model.SerializeToString(deterministic=True)
    return data
