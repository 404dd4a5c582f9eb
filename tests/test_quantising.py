"""int8: the gate by hand and on a trained network, the weights as they stand in the file, the search by brute force."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import ResNet, architecture
from resnetkit.paired import mcnemar, newcombe
from resnetkit.weights import ModelFile, save_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from resnetkit import quantising  # noqa: E402
from resnetkit.engines import qdq  # noqa: E402
from resnetkit.engines.files import Source, peek, read  # noqa: E402
from resnetkit.engines.preparing import onnx_bytes  # noqa: E402
from resnetkit.engines.starting import start  # noqa: E402
from resnetkit.exporting import check_batches, export_for_engine  # noqa: E402
from resnetkit.quantising import Gate, Trials, chosen, judging_split, quantised  # noqa: E402

PREPROCESS = Preprocess(16, "shorter", 16, "bilinear", 3, "RGB", (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), True)
CLASSES = ("ant", "bee", "cat", "dog")
TRAIN, VAL = 96, 120


def pictures() -> Data:
    """Stripes of four directions and colours in noise that leaves some of them unclear."""
    dice = np.random.default_rng(0)
    labels = np.arange(TRAIN + VAL) % 4
    down, across = np.mgrid[:16, :16]
    waves = np.stack([np.sin(down), np.sin(across), np.sin(down + across), np.sin(down - across)])[labels]
    colours = np.array([[60, 20, 20], [20, 60, 20], [20, 20, 60], [40, 40, 40]])[labels]
    noise = dice.normal(0, 70, (len(labels), 16, 16, 3))
    pixels = 120 + waves[..., None] * colours[:, None, None] + noise
    pool = Arrays(np.clip(pixels, 0, 255).astype(np.uint8), (("x", len(labels)),))
    splits = {"train": np.arange(TRAIN), "val": np.arange(TRAIN, TRAIN + VAL)}
    return Data("x:", pool, labels, CLASSES, splits)


@cache
def trained() -> ModelFile:
    """A small network that has learnt the pictures for a few seconds."""
    torch.manual_seed(0)
    data, network = pictures(), ResNet(architecture("resnet8-cifar", classes=4))
    assert isinstance(data.pictures, Arrays)
    x = PREPROCESS.normalise(torch.from_numpy(data.pictures.pixels[:TRAIN]))
    y = torch.from_numpy(data.labels[:TRAIN])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers as small as these only wait for a second one
    optimiser = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for _ in range(25):
        for part in torch.randperm(TRAIN).split(32):
            optimiser.zero_grad()
            F.cross_entropy(network.train()(x[part]), y[part]).backward()
            optimiser.step()
    torch.set_num_threads(threads)
    return ModelFile(network.eval(), CLASSES, PREPROCESS)


def graph_of(model: ModelFile, folder: Path) -> Path:
    path = folder / "graph.onnx"
    path.write_bytes(onnx_bytes(model))
    return path


def int8(model: ModelFile, folder: Path, **options: object) -> tuple[list[Path], Gate]:
    settings = {"to": "onnx", "made": folder / "m.onnx", "input": "uint8", "max_drop": 5.0, **options}
    return quantised(model, settings.pop("data", pictures()), **settings)


def correct(engine_file: Path, data: Data) -> np.ndarray:
    engine = start("onnx" if engine_file.suffix == ".onnx" else "openvino", peek(engine_file), 1)
    shown = [data.pictures.read(index) for index in data.splits["val"].tolist()]
    return engine(np.stack(shown)).argmax(1) == data.labels[data.splits["val"]]


def of_counts(fp32: int, int8: int, lost: int, won: int, **more: object) -> Gate:
    fields = {"data": "x:", "split": "val", "engine": "onnx", "n": 1000, "calibrated_on": 512, "layers": 20}
    numbers = {"fp32_correct": fp32, "int8_correct": int8, "drop": (fp32 - int8) / 10, "lost": lost, "won": won}
    rest = {"drop_interval": (-0.1, 0.7), "p": 0.25, "left_in_fp32": (), "error_taken": 0.0, "tries": 1}
    return Gate(**{**fields, **numbers, **rest, "max_drop": 0.3, **more})


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_trained_network_passes_and_its_file_says_how(to: str, tmp_path: Path) -> None:
    if to == "openvino":
        pytest.importorskip("openvino")
    told: list[str] = []
    out = tmp_path / ("m.onnx" if to == "onnx" else "m.xml")
    done = export_for_engine(trained(), to, out, int8=pictures(), max_drop=5, say=told.append)
    gate, source = done.proof, read(out)
    assert isinstance(gate, Gate)
    assert (source.precision, source.input) == ("int8", "uint8")
    fp32 = export_for_engine(trained(), to, out.with_stem("fp32")).files[0]
    a, b = correct(Path(fp32), pictures()), correct(out, pictures())
    assert 0.6 < a.mean() < 1
    assert (gate.n, gate.fp32_correct, gate.int8_correct) == (VAL, a.sum(), b.sum())
    assert (gate.lost, gate.won) == ((a & ~b).sum(), (b & ~a).sum())
    assert gate.drop == pytest.approx(100 * (a.mean() - b.mean()))
    low, high = newcombe((a & b).sum(), gate.lost, gate.won, (~a & ~b).sum())
    assert gate.drop_interval == pytest.approx((-100 * high, -100 * low))
    assert gate.p == mcnemar(gate.lost, gate.won)
    assert (gate.tries, gate.left_in_fp32, gate.calibrated_on) == (1, (), 64)
    assert done.to_dict()["proof"] == json.loads(json.dumps(gate.to_dict()))
    assert sorted(file.name for file in tmp_path.iterdir() if file.stem == "m") == sorted(
        Path(file).name for file in done.files
    )
    assert [line.split()[0] for line in told] == ["calibrating", "scoring", "scoring"]


def test_the_metadata_hold_the_gate(tmp_path: Path) -> None:
    (made,), gate = int8(trained(), tmp_path)
    network = onnx.load(made)
    export = json.loads(network.metadata_props[-1].value)["export"]
    assert export["int8"] == json.loads(json.dumps(gate.to_dict()))
    assert export["int8"]["weight_bits"] == 7
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_spoilt_calibration_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """Pictures of one grey: no range fits real ones."""
    data = pictures()
    assert isinstance(data.pictures, Arrays)
    data.pictures.pixels[:TRAIN] = np.random.default_rng(1).integers(126, 130, (TRAIN, 16, 16, 3))
    numbers = r"all \d+ layers: \d+ of 120 right, \d+ in fp32 \(\d+ right no longer, \d+ right only now\): a drop of"
    with pytest.raises(UserError, match=rf"costs more than 0\.3 points of top-1, and nothing was written: {numbers}"):
        export_for_engine(trained(), "onnx", tmp_path / "m.onnx", int8=data)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arch", "choices"),
    [
        ("resnet8-cifar", {}),
        ("resnet8-cifar", {"preactivation": True, "shortcut": "B"}),
        ("resnet8-cifar", {"se": True}),
        ("resnet26d", {"groups": 8, "base_width": 4}),
    ],
)
def test_every_weight_has_seven_bits_and_every_layer_is_in_int8(
    arch: str, choices: dict[str, object], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = ModelFile(ResNet(architecture(arch, classes=4, **choices)).eval(), CLASSES, PREPROCESS)
    graph = graph_of(model, tmp_path)
    shown = np.stack([pictures().pictures.read(i) for i in range(8)])
    file = tmp_path / "int8.onnx"
    file.write_bytes(qdq.quantised(graph, qdq.ranges(graph, [shown], tmp_path)))
    network = onnx.load(file)
    values = {item.name: onnx.numpy_helper.to_array(item) for item in network.graph.initializer}
    makers = {out: node for node in network.graph.node for out in node.output}
    layers = [node for node in network.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in model.network.modules())
    for node in layers:
        source = makers[node.input[1]]
        weights, scales = (values[part] for part in source.input[:2])
        assert source.op_type == "DequantizeLinear"
        assert weights.dtype == np.int8
        assert np.abs(weights.astype(int)).max() in (63, 64)
        assert scales.shape == (len(weights),)
    quantised_kinds = {*qdq.LAYERS, *qdq.ALONG} - {"Relu"}
    for node in network.graph.node:
        if node.op_type in quantised_kinds and not node.name.startswith("preprocess."):
            assert makers[node.input[0]].op_type == "DequantizeLinear", node.name
            readers = [other.op_type for other in network.graph.node if node.output[0] in other.input]
            assert set(readers) <= {"QuantizeLinear", "Relu"} or node.op_type in qdq.ALONG, (node.name, readers)
    answers = start("onnx", Source(file, model.about, "uint8", "int8", ""), 1)(shown)
    assert np.isfinite(answers).all()


def test_options_of_the_first_kind_run_in_integers(tmp_path: Path) -> None:
    """Shortcuts of option A and their sums are integer kernels after ONNX Runtime's own optimisation."""
    onnxruntime = pytest.importorskip("onnxruntime")
    (made,), _ = int8(trained(), tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fast.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(made), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "fast.onnx").graph.node]
    assert not {"Conv", "Gemm", "FusedConv", "GlobalAveragePool"} & set(kinds)
    assert kinds.count("QLinearConv") == 7
    assert kinds.count("QLinearAdd") == 3
    assert kinds.count("Add") == 1  # of the normalisation


def test_the_order_of_layers_is_that_of_brute_force(tmp_path: Path) -> None:
    """Two equal channels with weights of K and -K: they cancel, and leave the other weights of their layer no steps."""
    model = ModelFile(trained().network, CLASSES, PREPROCESS)
    torch.manual_seed(0)
    network = ResNet(architecture("resnet8-cifar", classes=4))
    network.load_state_dict(model.network.state_dict())
    block = network.eval().layer2[0]
    with torch.no_grad():
        for tensor in (block.conv1.weight, *block.bn1.state_dict().values()):
            if tensor.dim():
                tensor[1] = tensor[0]
        large = 40 * block.conv2.weight.abs().max()
        block.conv2.weight[:, 0] += large
        block.conv2.weight[:, 1] -= large
    model = replace(model, network=network)
    trials = Trials(model, pictures(), "onnx", "uint8", tmp_path, lambda _: None)
    shares = trials.sensitivity()
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert set(shares) == set(trials.layers)
    graph = graph_of(model, tmp_path)
    shown = np.stack([pictures().pictures.read(index) for index in trials.sounding.tolist()])

    def logits(file: Path) -> np.ndarray:
        return start("onnx", Source(file, model.about, "uint8", "int8", ""), 1)(shown).astype(np.float64)

    def error(left: list[str]) -> float:
        file = tmp_path / "brute.onnx"
        file.write_bytes(qdq.quantised(graph, trials.ranges, left))
        return float(((logits(file) - reference) ** 2).mean())

    reference = logits(graph)
    whole = error([])
    brute = {name: 1 - error(nodes) / whole for name, nodes in trials.layers.items()}
    assert shares == pytest.approx(brute, abs=1e-6)
    assert next(iter(shares)) == "layer2.0.conv2"
    assert shares["layer2.0.conv2"] > 0.5


def test_layers_stay_in_fp32_until_the_gate_lets_it_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "passed", property(lambda gate: len(gate.left_in_fp32) >= 2))
    (made,), gate = int8(trained(), tmp_path)
    assert gate.tries == 3  # none, one, two
    assert len(gate.left_in_fp32) == 2
    left = {name for name, _ in gate.left_in_fp32}
    network = onnx.load(made)
    initial = {item.name for item in network.graph.initializer}
    floats = {node.name for node in network.graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in initial}
    assert floats == {name for name in left if "conv" in name or name == "fc"}
    assert gate.left_in_fp32[0][1] >= gate.left_in_fp32[1][1]
    assert "found in 3 tries on these pictures" in str(gate)


def test_never_more_than_a_quarter_of_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(Gate, "passed", property(lambda gate: bool(counts.append(len(gate.left_in_fp32)))))
    with pytest.raises(UserError, match="nothing was written"):
        int8(trained(), tmp_path)
    assert counts == [0, 1, 2]  # of 13 layers: 7 convolutions, 3 sums, and so on; 4 would be above 13 / 4
    assert list(tmp_path.iterdir()) == []


def test_the_pictures_of_training_set_the_ranges_and_no_others(tmp_path: Path) -> None:
    """Ranges are those of numpy over the calibration pictures, and never has a batch been larger than `BATCH`."""
    data, sizes = pictures(), []

    class Watched(Trials):
        def given(self, batch: object) -> np.ndarray:
            sizes.append(batch.indices.tolist())
            return super().given(batch)

    trials = Watched(trained(), data, "onnx", "uint8", tmp_path, lambda _: None)
    assert sorted([index for batch in sizes for index in batch]) == trials.calibrating.tolist()
    assert max(map(len, sizes)) <= quantising.BATCH
    shown = torch.from_numpy(np.stack([data.pictures.read(i) for i in trials.calibrating.tolist()]))
    network = trained().network
    with torch.inference_mode():
        stem = F.relu(network.bn1(network.conv1(PREPROCESS.normalise(shown))))
    low, high = (np.ravel(end)[0] for end in trials.ranges["relu"].range_value)
    assert high == pytest.approx(float(stem.max()), rel=1e-4)
    assert low == 0


def test_large_pictures_come_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(quantising, "PIXELS", 3 * 16 * 16 + 5)
    monkeypatch.setattr(Trials, "given", lambda _, batch: sizes.append(len(batch.indices)) or batch.pictures)
    Trials(trained(), pictures(), "onnx", "uint8", tmp_path, lambda _: None)
    assert set(sizes) == {3, 1}
    assert sum(sizes) == 64


def test_the_choice_of_pictures() -> None:
    labels = np.repeat(np.arange(3), [900, 300, 60])
    pool = Arrays(np.zeros((1260, 1, 1, 3), np.uint8), (("x", 1260),))
    data = Data("x:", pool, labels, ("a", "b", "c"), {"train": np.arange(1260), "test": np.arange(9)})
    calibrating, sounding = chosen(data)
    assert (len(calibrating), len(sounding)) == (512, 256)
    assert not set(calibrating) & set(sounding)
    assert np.bincount(labels[np.r_[calibrating, sounding]]).tolist() == [408, 300, 60]
    assert all(np.array_equal(a, b) for a, b in zip(chosen(data), (calibrating, sounding), strict=True))
    assert judging_split(data) == "test"
    few = replace(data, splits={"train": np.arange(2), "val": np.arange(9)})
    assert [len(part) for part in chosen(few)] == [1, 1]


def test_the_gate_by_hand() -> None:
    assert of_counts(800, 797, 5, 2).passed
    assert not of_counts(800, 796, 6, 2).passed
    assert of_counts(800, 803, 2, 5).passed
    text = str(of_counts(800, 797, 5, 2))
    assert "797 of 1,000 right, 800 in fp32 (5 right no longer, 2 right only now): a drop of 0.30 points" in text
    assert "(95 % interval -0.10 to 0.70)" in text
    assert "tries" not in text
    better = str(of_counts(800, 803, 2, 5, drop_interval=(-0.7, 0.1)))
    assert "a gain of 0.30 points (95 % interval -0.10 to 0.70)" in better
    left = str(of_counts(800, 797, 5, 2, left_in_fp32=(("fc", 0.5), ("conv1", 0.25)), error_taken=0.7, tries=3))
    assert "18 of 20 layers, in fp32 the most sensitive: fc (50 %), conv1 (25 %), 70 % of the logits' error" in left
    assert "3 tries" in left


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "mnn"}, "MNN ends the whole process"),
        ({"to": "torch-export"}, "torch-export is written in fp32 only"),
        ({"max_drop": -1.0}, "0 or more"),
        ({"max_drop": float("nan")}, "0 or more"),
        ({"data": replace(pictures(), splits={"all": np.arange(9)})}, "there is all|finds all"),
        ({"data": replace(pictures(), splits={"train": np.arange(9)})}, "finds train"),
        ({"data": replace(pictures(), classes=("ant", "bee", "cat", "yak"))}, "yak"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        int8(trained(), tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_other_engines_are_refused_before_a_model_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="take --to onnx or openvino"):
        export_for_engine(tmp_path / "missing", "mnn", tmp_path / "m.mnn", int8=pictures())


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        for name in CLASSES:
            place = tmp_path / "data" / split / name
            place.mkdir(parents=True)
            for number in range(2):
                (place / f"{number}.png").write_bytes(b"no picture")
    save_model(trained(), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"6 pictures cannot be read: train/ant/"):
        export_for_engine(tmp_path / "m.safetensors", "onnx", tmp_path / "m.onnx", int8=tmp_path / "data")


def test_float_input_has_the_same_answers(tmp_path: Path) -> None:
    (made,), gate = int8(trained(), tmp_path, input="float")
    assert peek(made).input == "float"
    assert correct(made, pictures()).sum() == gate.int8_correct


def test_answers_that_depend_on_the_batch_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made,), _ = int8(trained(), tmp_path)
    shown = np.stack([pictures().pictures.read(index) for index in range(10)])
    check_batches(trained(), read(made), shown)
    monkeypatch.setattr("resnetkit.exporting.start", lambda *_: lambda x: np.full((len(x), 4), len(x), np.float32))
    with pytest.raises(UserError, match="in batches of 2, against single pictures"):
        check_batches(trained(), read(made), shown)
