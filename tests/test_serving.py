"""The server's addresses, asked over a real connection, by hand and by Triton's client."""

from __future__ import annotations

import base64
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="needs resnetkit[serve]")
pytest.importorskip("python_multipart", reason="needs resnetkit[serve]")

from prediction_samples import CLASSES, COLOUR
from resnetkit.errors import UserError
from resnetkit.prediction import load
from resnetkit.serving.hosting import places
from resnetkit.serving.limits import Limits
from resnetkit.serving.running import Asked, open_server
from serving_samples import Running, form, model_file, png, serving, stub_server, tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return model_file(folder / "pets" / "model.safetensors", calibration={"temperature": 1.7})


@pytest.fixture(scope="module")
def pets(model: Path) -> Iterator[Running]:
    """A real network in torch, as `resnet serve` has it."""
    lines: list[str] = []
    asked = Asked((str(model.parent),), port=0, engine="torch", limits=Limits(drain=0.0))
    with serving(open_server(asked, lines.append, lines.append), lines) as running:
        yield running


def predicted(model: Path, folder: Path, data: list[bytes], top: int = 5) -> list[dict[str, Any]]:
    """What `resnet predict` says of the same bytes, one by one, in the same engine."""
    classifier = load(model)
    found = []
    for number, each in enumerate(data):
        (folder / f"same-{number}").write_bytes(each)
        (answer,) = classifier.predict([folder / f"same-{number}"], top=top, engine="torch")
        found.append(answer.to_dict() | {"path": ""})
    return found


# One picture, and forms


def test_the_answer_is_that_of_predict_bit_for_bit(pets: Running, model: Path, folder: Path) -> None:
    """One at a time, so the engine has the same batches."""
    data = [png(folder, seed, (9 + seed % 20, 30 - seed % 20)) for seed in range(250)]
    told = [pets.post("/predict", each).json["predictions"][0] for each in data]
    assert told == predicted(model, folder, data)
    assert len({answer["class"] for answer in told}) > 1


def test_several_labels_are_those_of_predict(folder: Path) -> None:
    """In `/predict` and as the protocol's outputs, and the page is told of it."""
    several = model_file(folder / "many" / "model.safetensors", multi_label=True)
    lines: list[str] = []
    asked = Asked((str(several),), port=0, engine="torch", limits=Limits(drain=0.0))
    data = [png(folder, seed, (9 + seed, 30 - seed)) for seed in range(8)]
    wanted = predicted(several, folder, data)
    with serving(open_server(asked, lines.append, lines.append), lines) as running:
        assert running.get("/v2/models/many").json["parameters"]["multi_label"] is True
        assert [running.post("/predict", each).json["predictions"][0] for each in data] == wanted
        asked_for = tensors("image", "BYTES", [base64.b64encode(each).decode() for each in data])
        told = running.post("/v2/models/many/infer", json.dumps(asked_for).encode()).json["outputs"]
        labels = next(each["data"] for each in told if each["name"] == "class")
        assert labels == ["|".join(each["labels"]) for each in wanted]
    assert len({tuple(each["labels"]) for each in wanted}) > 1


def test_answers_of_a_form_are_those_of_predict(pets: Running, model: Path, folder: Path) -> None:
    """In batches together: floats add up in another order there."""
    data = [png(folder, seed, (40, 20 + seed)) for seed in range(20)]
    body, kind = form([(f"p{number}.png", each) for number, each in enumerate(data)])
    answer = pets.post("/predict?top=7", body, content_type=kind).json
    assert answer["model"] == "pets"
    assert [each["path"] for each in answer["predictions"]] == [f"p{number}.png" for number in range(20)]
    for told, want in zip(answer["predictions"], predicted(model, folder, data, top=7), strict=True):
        assert told["class"] == want["class"]
        assert [each["class"] for each in told["top"]] == [each["class"] for each in want["top"]]
        shares = [[each["probability"] for each in side["top"]] for side in (told, want)]
        assert shares[0] == pytest.approx(shares[1], rel=1e-5)


def test_a_form_answers_for_each_picture_also_for_those_that_cannot_be_read(pets: Running, folder: Path) -> None:
    body, kind = form([("a.png", png(folder)), ("b.png", b"no picture"), ("", b"")])
    answer = pets.post("/predict", body, content_type=kind)
    assert answer.status == 200
    a, b, c = answer.json["predictions"]
    assert a["error"] is None
    assert (b["class"], b["top"]) == (None, [])
    assert "not a picture" in b["error"] or "no picture" in b["error"]
    assert c["error"] is not None


def test_a_picture_that_cannot_be_read_is_refused_with_a_reason(pets: Running, folder: Path) -> None:
    assert pets.post("/predict", png(folder)[:-30]).status == 400
    for body in (b"", b"hello"):
        answer = pets.post("/predict", body)
        assert answer.status == 400
        assert "picture" in answer.error


@pytest.mark.parametrize("query", ["top=0", "top=x", "top=1001", "tpo=3", "model=cats", "version=none"])
def test_what_means_nothing_in_the_address_is_refused(pets: Running, folder: Path, query: str) -> None:
    answer = pets.post(f"/predict?{query}", png(folder))
    assert answer.status == (404 if query[0] in "mv" else 400)
    assert answer.error


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (b"--x\r\n", "multipart/form-data", "no usable boundary"),
        (b"--x\r\n", "multipart/form-data; boundary=" + "y" * 71, "no usable boundary"),
        (b"", "multipart/form-data; boundary=x", "the form is cut off"),
        (b"--x\r\nnon sense: 1\r\n", "multipart/form-data; boundary=x", "the form is damaged"),
        (form([])[0], form([])[1], "the form"),
        (form([("a", b"b")])[0][:-30], form([])[1], "the form is cut off"),
        (form([("a" * 9000, b"b")])[0], form([])[1], "the form is damaged"),
        (
            b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
            "field 'top' of the form is no file",
        ),
    ],
)
def test_damaged_forms_are_named(pets: Running, body: bytes, kind: str, sentence: str) -> None:
    answer = pets.post("/predict", body, content_type=kind)
    assert (answer.status, sentence in answer.error) == (400, True), answer.error


def test_below_the_threshold_there_is_no_answer(folder: Path) -> None:
    sure = model_file(folder / "sure.safetensors", calibration={"temperature": 1.0, "threshold": 0.9999})
    lines: list[str] = []
    asked = Asked((str(sure),), port=0, engine="torch", limits=Limits(drain=0.0))
    with serving(open_server(asked, lines.append, lines.append)) as running:
        (answer,) = running.post("/predict", png(folder)).json["predictions"]
        (said,) = load(sure).predict([folder / "0.png"], engine="torch")
        assert running.get("/v2/models/sure").json["parameters"]["threshold"] == 0.9999
    assert answer["class"] is None
    assert 0 < answer["probability"] < 0.9999
    assert answer["top"][0]["probability"] == answer["probability"]
    assert said.to_dict() | {"path": ""} == answer


# The Open Inference Protocol


def test_tritonclient_works_unchanged(pets: Running, model: Path, folder: Path) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    client = triton.InferenceServerClient(f"127.0.0.1:{pets.port}")
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("pets")
        assert not client.is_model_ready("cats")
        described = client.get_model_metadata("pets")
        assert described["outputs"][1] == {"name": "probabilities", "datatype": "FP64", "shape": [-1, len(CLASSES)]}
        assert client.get_model_config("pets")["max_batch_size"] == Limits().batch
        assert [each["name"] for each in client.get_model_repository_index()] == ["pets"]

        data = [png(folder, seed) for seed in range(3)]
        want = predicted(model, folder, data)
        image = triton.InferInput("image", [3], "BYTES")
        image.set_data_from_numpy(np.array(data, dtype=object))
        for binary in (True, False):
            names = ("class", "probabilities", "logits")
            outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
            told = client.infer("pets", [image], outputs=outputs, request_id="r1", timeout=20_000_000)
            assert told.get_response()["id"] == "r1"
            assert [name.decode() for name in told.as_numpy("class").astype(bytes)] == [each["class"] for each in want]
            first = told.as_numpy("probabilities").max(1)
            assert first == pytest.approx([each["probability"] for each in want], rel=1e-5)
        ranks = client.infer("pets", [image], outputs=[triton.InferRequestedOutput("probabilities", class_count=2)])
        value, _, label = ranks.as_numpy("probabilities")[0, 0].decode().split(":")
        assert (label, float(value)) == (want[0]["class"], pytest.approx(want[0]["probability"], abs=1e-5))

        fit = np.stack([COLOUR.fit(COLOUR.open(each)) for each in data])
        pixels = triton.InferInput("pixels", list(fit.shape), "UINT8")
        for binary in (True, False):
            pixels.set_data_from_numpy(fit, binary_data=binary)
            assert np.allclose(client.infer("pets", [pixels]).as_numpy("logits"), told.as_numpy("logits"), atol=1e-5)
        with pytest.raises(triton.InferenceServerException, match="no version"):
            client.infer("pets", [pixels], model_version="9")
        with pytest.raises(triton.InferenceServerException, match="compressed"):
            client.infer("pets", [pixels], request_compression_algorithm="gzip")
    finally:
        client.close()


def test_json_alone_is_enough(pets: Running, model: Path, folder: Path) -> None:
    data = [png(folder, seed) for seed in range(2)]
    texts = [base64.b64encode(each).decode() for each in data]
    asked = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2, 1], "data": texts}]}
    answer = pets.post("/v2/models/pets/infer", json.dumps(asked).encode()).json
    assert [each["name"] for each in answer["outputs"]] == ["class", "probabilities", "logits"]
    assert answer["outputs"][0]["data"] == [each["class"] for each in predicted(model, folder, data)]
    version = answer["model_version"]
    again = pets.post(f"/v2/models/pets/versions/{version}/infer", json.dumps(asked).encode()).json
    assert again["outputs"][0] == answer["outputs"][0]


PIXELS = np.zeros((1, 10, 10, 3), np.uint8)
WRONG: list[tuple[Any, str]] = [
    ([], "must be an object"),
    ({}, "inputs must be a list"),
    ({"inputs": []}, "there are 0 inputs"),
    ({"inputs": [{}]}, "must be 'image' or 'pixels'"),
    (tensors("image", "UINT8", PIXELS), "datatype must be BYTES"),
    (tensors("pixels", "UINT8", PIXELS[0]), "its shape must be [N, 10, 10, 3]"),
    (tensors("pixels", "UINT8", PIXELS + 0.5), "whole numbers"),
    (tensors("pixels", "UINT8", PIXELS.astype(int) - 1), "from 0 to 255"),
    (tensors("pixels", "UINT8", PIXELS, outputs=[{"name": "heat"}]), "an output must be one of"),
    (tensors("pixels", "UINT8", PIXELS, outputs=[{"name": "logits"}] * 2), "asked for twice"),
    (tensors("pixels", "UINT8", PIXELS, parameters={"priority": 1}), "'priority', which means nothing here"),
    (tensors("pixels", "UINT8", PIXELS, parameters={"timeout": 0}), "microseconds, above 0"),
    (tensors("pixels", "UINT8", PIXELS, id=5), "id must be a text"),
    (tensors("pixels", "UINT8", PIXELS, outputs=[{"name": "class", "parameters": {"classification": 2}}]), "classes"),
    ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["%%%"]}]}, "base64"),
    ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aaaa"]}]}, "picture 0"),
    ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": ["aaaa"]}]}, "it has 1"),
    ({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}, "either data or binary_data_size"),
    (
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 1 << 40}}]},
        "0 are there",
    ),
]


@pytest.mark.parametrize(("asked", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_a_request_that_is_wrong_says_what(pets: Running, asked: Any, sentence: str) -> None:
    answer = pets.post("/v2/models/pets/infer", json.dumps(asked).encode())
    assert answer.status == 400
    assert sentence in answer.error


def test_binary_data_that_do_not_fit_are_refused(pets: Running) -> None:
    def ask(blob: bytes, stated: int, length: int | None = None, more: bytes = b"") -> Any:
        about = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": stated}}
        text = json.dumps({"inputs": [about]}).encode()
        header = {"Inference_Header_Content_Length": str(len(text) if length is None else length)}
        return pets.post("/v2/models/pets/infer", text + blob + more, **header)

    assert "end within a length" in ask(b"abc", 3).error
    assert "end within a picture" in ask(struct.pack("<I", 9) + b"abc", 7).error
    assert "belong to no input" in ask(struct.pack("<I", 1) + b"a", 5, more=b"zz").error
    assert "header is said to have" in ask(b"", 0, length=1 << 30).error
    assert "whole number" in ask(b"", 0, length=-1).error
    assert "no JSON" in ask(b"", 0, length=0).error


# Everything else


def test_the_addresses_are_described(pets: Running) -> None:
    described = pets.get("/openapi.json").json
    assert described["openapi"] == "3.1.0"
    page = pets.get("/docs").body.decode()
    for path, methods in described["paths"].items():
        assert f"{path}</code>" in page
        concrete = path.replace("{name}", "pets").replace("{version}", "x")
        for method in methods:
            answer = pets.ask(method.upper(), concrete)
            assert answer.status != 405, path
            assert answer.status == 200 or "there is nothing here" not in answer.error, path
            assert str(answer.status) in methods[method]["responses"], (path, answer.status)


def test_prometheus_reads_what_happened(pets: Running, folder: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def figures() -> dict[tuple[str, ...], float]:
        text = pets.get("/metrics").body.decode()
        families = text_string_to_metric_families(text)
        return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}

    before = figures()
    body, kind = form([("a", png(folder)), ("b", png(folder, 1))])
    assert pets.post("/predict", body, content_type=kind).status == 200
    assert pets.post("/predict", b"no").status == 400
    after = figures()
    for key, more in {
        ("resnet_pictures_total", "pets"): 2,
        ("resnet_requests_total", "predict", "200"): 1,
        ("resnet_requests_total", "predict", "400"): 1,
        ("resnet_refused_total", "picture"): 1,
        ("resnet_request_seconds_count", "predict"): 2,
    }.items():
        assert after[key] - before.get(key, 0) == more, key
    assert after[("resnet_pictures_under_way", "pets")] == 0
    assert after[("resnet_batch_pictures_sum", "pets")] >= 2


def test_the_log_has_who_and_what_but_no_picture_and_no_query(pets: Running, folder: Path) -> None:
    answer = pets.post("/predict?top=3", png(folder), x_request_id="mine.1")
    assert answer.headers["x-request-id"] == "mine.1"
    while not (found := [line for line in pets.lines if " mine.1 " in line]):  # it comes after the answer
        time.sleep(0.005)
    (line,) = found
    assert "127.0.0.1 POST /predict 200 " in line
    assert "top=3" not in line
    assert len(pets.post("/predict", b"", x_request_id="ev\til").headers["x-request-id"]) == 16


def test_what_is_not_there(pets: Running) -> None:
    for path in ("/nope", "/predict/", "/static/../model.safetensors", "/static/serve.html", "//", "/v2/models//ready"):
        answer = pets.get(path)
        assert (answer.status, answer.error) == (404, "there is nothing here"), path
        assert answer.json["request_id"] == answer.headers["x-request-id"]
    answer = pets.get("/predict")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert pets.get("/v2/models/cats").error == "there is no model 'cats'"


def test_an_error_of_the_server_tells_nobody_what_it_is(model: Path, folder: Path) -> None:
    def broken(_: Any) -> Any:
        raise ZeroDivisionError("secret")

    with stub_server(model, broken) as running:
        answer = running.post("/predict", png(folder))
        assert (answer.status, answer.json["error"]) == (500, "the server failed; its log says why")
        assert b"secret" not in answer.body
        assert any("ZeroDivisionError: secret" in line for line in running.lines)
        assert running.get("/v2/health/ready").status == 200


# Names


def test_models_are_named_by_their_run(folder: Path, model: Path) -> None:
    other = model_file(folder / "wild life!" / "model.safetensors", seed=5)
    assert [place.name for place in places([str(model.parent), str(other), f"x-1={model}"])] == [
        "pets",
        "wild-life",
        "x-1",
    ]
    with pytest.raises(UserError, match="give it one: NAME="):
        places([str(model_file(folder / "...." / "ø.safetensors"))])
    with pytest.raises(UserError, match="nope"):
        places(["nope"])
