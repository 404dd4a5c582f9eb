"""The addresses of a server in words and in OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

from typing import Any

from resnetkit.drawing import render
from resnetkit.serving.limits import Limits

JSON = "application/json"
TENSORS = "application/octet-stream"


def document(limits: Limits) -> dict[str, Any]:
    """The OpenAPI document, as plain JSON values."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pictures to classes",
            "version": "2",
            "description": "Send a picture, get what it shows. Errors are JSON objects with `error`, a sentence.",
        },
        "paths": {
            "/predict": {"post": predict(limits)},
            "/heatmap": {"post": HEAT_MAP},
            "/v2/health/live": {"get": get("Whether the server runs.")},
            "/v2/health/ready": {"get": get("Whether it takes requests.", "503")},
            "/v2": {"get": get("What the server is.")},
            "/v2/repository/index": {"post": get("Every model and version.")},
            "/v2/repository/models/{name}/load": {
                "post": get("Look at a model's file again; needs a token.", "400", "403", "404", parameters=[NAME])
            },
            **{path: about for part in ("", "/versions/{version}") for path, about in model(part, limits).items()},
            "/metrics": {
                "get": {
                    "summary": "Figures for Prometheus.",
                    "responses": {"200": content("The figures.", "text/plain")},
                }
            },
        },
        "components": {
            "schemas": {"Error": ERROR, "Prediction": PREDICTION},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
VERSION = {**NAME, "name": "version"}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}},
}
PREDICTION = {
    "type": "object",
    "required": ["path", "class", "probability", "top", "error"],
    "properties": {
        "path": {"type": "string", "description": "The file name of the form; empty for a body."},
        "class": {"type": ["string", "null"], "description": "null where the model is not sure."},
        "probability": {"type": ["number", "null"], "description": "Calibrated, of the first class."},
        "top": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"class": {"type": "string"}, "probability": {"type": "number"}},
            },
        },
        "error": {"type": ["string", "null"], "description": "Why the picture could not be read."},
    },
}
SENTENCES = {
    "400": "Something is wrong with the request.",
    "403": "Not allowed.",
    "404": "No such model or version.",
    "408": "The body took too long to come.",
    "413": "Larger than is allowed.",
    "429": "Too many requests of this address at a time.",
    "503": "Overloaded, or not ready; Retry-After says when to ask again.",
}


def content(sentence: str, kind: str = JSON, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": sentence, "content": {kind: {"schema": schema or {}}}}


def refusals(*statuses: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {status: content(SENTENCES[status], schema=schema) for status in statuses}


def get(summary: str, *statuses: str, parameters: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    responses = {"200": content("Yes." if "Whether" in summary else "An answer."), **refusals(*statuses)}
    return {"summary": summary, "responses": responses, **({"parameters": parameters} if parameters else {})}


def predict(limits: Limits) -> dict[str, Any]:
    query = [
        {"name": "model", "in": "query", "schema": {"type": "string"}, "description": "By default the first one."},
        {"name": "version", "in": "query", "schema": {"type": "string"}, "description": "By default the last one."},
        {"name": "top", "in": "query", "schema": {"type": "integer", "minimum": 1, "default": 5}},
    ]
    form = {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
    answer = {
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "version": {"type": "string"},
            "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}},
        },
    }
    return {
        "summary": "Say what is in a picture.",
        "description": f"The body is a picture of at most {limits.body:,} bytes and {limits.pixels:,} pixels, or a "
        f"form with at most {limits.batch:,} of them. A form answers for each picture, "
        "also for those that cannot be read.",
        "parameters": query,
        "requestBody": {
            "required": True,
            "content": {"image/*": {}, TENSORS: {}, "multipart/form-data": {"schema": form}},
        },
        "responses": {
            "200": content("Answers.", schema=answer),
            **refusals("400", "404", "408", "413", "429", "503"),
        },
    }


HEAT_MAP = {
    "summary": "Where the model looked.",
    "description": "The body is a picture; the answer is a PNG to lay over it. Not every server has this.",
    "parameters": [
        {"name": "class", "in": "query", "required": True, "schema": {"type": "string"}},
        {"name": "model", "in": "query", "schema": {"type": "string"}},
        {"name": "version", "in": "query", "schema": {"type": "string"}},
    ],
    "requestBody": {"required": True, "content": {"image/*": {}, TENSORS: {}}},
    "responses": {"200": content("A picture.", "image/png"), **refusals("400", "404", "408", "413", "429", "503")},
}


def model(part: str, limits: Limits) -> dict[str, Any]:
    """The addresses of a model, or of one of its versions."""
    path, parameters = f"/v2/models/{{name}}{part}", [NAME, VERSION] if part else [NAME]
    infer = get("Tensors in, tensors out.", "400", "404", "408", "413", "429", "503", parameters=parameters)
    infer["description"] = (
        f"Open Inference Protocol with the binary extension. Input `image`: BYTES (N), picture files; or `pixels`: "
        f"UINT8 (N, size, size, channels). N is at most {limits.batch:,}. Outputs: `class`, `probabilities`, `logits`."
    )
    infer["requestBody"] = {"required": True, "content": {JSON: {}, TENSORS: {}}}
    about = {"parameters": parameters}
    return {
        path: {"get": get("Inputs, outputs, classes and versions.", "404", **about)},
        f"{path}/ready": {"get": get("Whether the model is there.", "404", **about)},
        f"{path}/config": {"get": get("The same as Triton describes models.", "404", **about)},
        f"{path}/infer": {"post": infer},
    }


def page(limits: Limits) -> str:
    """The document as a page that needs nothing else."""
    return render("serve_api.html", api=document(limits))
