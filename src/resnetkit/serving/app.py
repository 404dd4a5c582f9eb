"""The routes: one application over models, limits and metrics. Errors and who may ask are the doorkeeper's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from resnetkit.about import model_path
from resnetkit.errors import BadPicture, UserError
from resnetkit.prediction import Prediction, answered, probabilities, ranked
from resnetkit.serving import oip, openapi
from resnetkit.serving.answering import Answering
from resnetkit.serving.bodies import read_body
from resnetkit.serving.doorkeeper import App, Receive, Scope, Send
from resnetkit.serving.forms import files_of
from resnetkit.serving.hosting import Hosted, Models
from resnetkit.serving.limits import Budget, Limits, Refused
from resnetkit.serving.metrics import CONTENT_TYPE, Metrics
from resnetkit.serving.pictures import prepared

LARGEST_TOP = 1000
Heat = Callable[[Path, bytes, str], bytes]  # model, picture file and class to a PNG to lay over it; raises BadPicture
STATIC = {"serve.js": "text/javascript", "serve.css": "text/css", "serve.svg": "image/svg+xml"}


class Service:
    """What the routes share.

    min_probability  instead of the threshold that each model states
    may_reload       whether requests may have models loaded anew
    heat             what draws where a model looked, if anything does; it takes seconds, so there is one at a time
    """

    def __init__(
        self,
        models: Models,
        limits: Limits,
        metrics: Metrics,
        answering: Answering,
        say: Callable[[str], None],
        *,
        min_probability: float | None = None,
        may_reload: bool = False,
        heat: Heat | None = None,
    ) -> None:
        self.models, self.limits, self.metrics, self.answering, self.say = models, limits, metrics, answering, say
        self.min_probability, self.may_reload, self.heat = min_probability, may_reload, heat
        self.heating = Budget(1)
        self.bodies = Budget(limits.bodies)
        self.addresses = openapi.page(limits)
        self.ready = True

    # For everybody

    async def predict(self, request: Request) -> Response:
        """A picture as the body, or several as a form."""
        asked = settings(request, ("model", "version", "top"))
        top = whole(asked.get("top", "5"), 1, LARGEST_TOP, "top")
        hosted = self.models.use(asked.get("model"), asked.get("version"))
        try:
            async with read_body(request, self.limits, self.bodies) as body:
                kind = request.headers.get("content-type", "")
                form = kind.lower().startswith("multipart/form-data")
                named = await self.in_thread(files_of, body, kind, self.limits.batch) if form else [("", body)]
                if not body:
                    raise Refused(400, "there is no picture: send its bytes as the body, or a form", reason="picture")
                answers = await self.answering.images(hosted, [data for _, data in named])
                best = iter(ranked(answers.logits, hosted.about, top, hosted.name)) if len(answers.logits) else iter(())
        finally:
            hosted.leave()
        found = [
            answered(name, next(best), self.threshold(hosted), several=hosted.about.multi_label)
            if error is None
            else Prediction(name, None, None, (), error)
            for (name, _), error in zip(named, answers.errors, strict=True)
        ]
        self.count(request, hosted, len(answers.logits))
        if not form and found[0].error is not None:
            raise Refused(400, found[0].error, reason="picture")
        about = {"model": hosted.name, "version": hosted.version}
        return JSONResponse(about | {"predictions": [each.to_dict() for each in found]})

    async def heat_map(self, request: Request) -> Response:
        """Where a model looked for a class, as a PNG to lay over the picture."""
        if self.heat is None:
            raise Refused(404, "this server draws no heat maps", reason="path")
        asked = settings(request, ("model", "version", "class"))
        hosted = self.models.use(asked.get("model"), asked.get("version"))
        try:
            label = asked.get("class", "")
            if label not in hosted.about.classes:
                raise Refused(400, f"the model has no class {label[:64]!r}", reason="query")
            async with read_body(request, self.limits, self.bodies) as body:
                if not self.heating.take(1):
                    raise Refused(503, "another heat map is being drawn", reason="queue", retry=1)
                drawing = asyncio.ensure_future(self.in_thread(self.drawn, hosted, body, label))
                drawing.add_done_callback(lambda _: self.heating.give_back(1))  # it cannot be interrupted
                try:
                    async with asyncio.timeout(self.limits.heat):
                        image = await asyncio.shield(drawing)
                except TimeoutError:
                    raise Refused(503, "there was no heat map in time", reason="answer", retry=1) from None
                except BadPicture as error:
                    raise Refused(400, str(error), reason="picture") from None
                except UserError as error:  # it may name files of this machine
                    self.say(f"no heat map: {error}")
                    raise Refused(400, "this model draws no heat maps", reason="query") from None
        finally:
            hosted.leave()
        return Response(image, media_type="image/png")

    def drawn(self, hosted: Hosted, body: bytes, label: str) -> bytes:
        """Raises BadPicture, before anything is drawn where the picture is too large."""
        assert self.heat is not None
        prepared(body, hosted.about.preprocess, self.limits.pixels)
        return self.heat(hosted.place.path, body, label)

    def draws(self, hosted: Hosted) -> bool:
        """Whether there are heat maps of a model: an exported one has no gradients."""
        file = model_path(hosted.place.path).suffix == ".safetensors"
        return self.heat is not None and file and not hosted.about.multi_label

    # Open Inference Protocol

    async def live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def readiness(self, _: Request) -> Response:
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

    async def server(self, _: Request) -> Response:
        return JSONResponse(
            {"name": "resnetkit", "version": "", "extensions": ["binary_tensor_data", "classification"]}
        )

    async def model_ready(self, request: Request) -> Response:
        self.model(request)
        return JSONResponse({"ready": True})

    async def model_metadata(self, request: Request) -> Response:
        hosted = self.model(request)
        versions = list(self.models.table.get(hosted.name, {}))
        more = {
            "classes": list(hosted.about.classes),
            "threshold": self.threshold(hosted),
            "calibrated": bool(hosted.about.calibration),
            "multi_label": hosted.about.multi_label,
            "heat_map": self.draws(hosted),
        }
        return JSONResponse(oip.metadata(hosted.about, hosted.name, versions) | {"parameters": more})

    async def model_config(self, request: Request) -> Response:
        hosted = self.model(request)
        return JSONResponse(oip.config(hosted.about, hosted.name, self.limits))

    async def infer(self, request: Request) -> Response:
        hosted = self.models.use(**place(request))
        try:
            async with read_body(request, self.limits, self.bodies) as body:
                stated = request.headers.get("inference-header-content-length")
                header = None if stated is None else whole(stated, 0, 1 << 40, "Inference-Header-Content-Length")
                asked = await self.in_thread(oip.parse, body, header, hosted.about, self.limits)
                if asked.pixels is not None:
                    answers = await self.answering.pixels(hosted, asked.pixels, asked.seconds)
                else:
                    answers = await self.answering.images(hosted, asked.images or (), asked.seconds)
            for number, error in enumerate(answers.errors):
                if error is not None:
                    raise Refused(400, f"picture {number}: {error}", reason="picture")
            several = hosted.about.multi_label
            best = ranked(answers.logits, hosted.about, len(hosted.about.classes) if several else 1, hosted.name)
            shares = partial(probabilities, answers.logits, hosted.about)
            labels = [answered("", each, self.threshold(hosted), several=several).answer or "" for each in best]
            who = {"name": hosted.name, "version": hosted.version}
            table = lambda name: shares() if name == "probabilities" else answers.logits  # noqa: E731
            answer = oip.answer(asked, hosted.about, who, labels, table)
        finally:
            hosted.leave()
        self.count(request, hosted, asked.n)
        if answer.header is None:
            return Response(answer.body, media_type="application/json")
        headers = {"inference-header-content-length": str(answer.header)}
        return Response(answer.body, media_type="application/octet-stream", headers=headers)

    async def index(self, _: Request) -> Response:
        found = [{"name": each.name, "version": each.version, "state": "READY", "reason": ""} for each in self.models]
        return JSONResponse(found)

    async def load(self, request: Request) -> Response:
        """Look at a model's file again."""
        if not self.may_reload:
            raise Refused(403, "models are loaded anew over HTTP only where the server has a token", reason="reload")
        name = self.models.find(request.path_params["name"]).name
        async with read_body(request, self.limits, self.bodies) as body:
            given = await self.in_thread(loose_json, body)
        if given.get("parameters"):
            raise Refused(400, "a model is loaded from where it lies; leave the parameters out", reason="reload")
        if not await self.reload(name):
            raise Refused(
                400, "it cannot be loaded; what answered before goes on, and the log says why", reason="reload"
            )
        return JSONResponse({})

    # Beside them

    async def scrape(self, _: Request) -> Response:
        rows = [(each.name, each.version, each.opened.engine, each.admission.under_way) for each in self.models]
        return Response(self.metrics.text(rows), headers={"content-type": CONTENT_TYPE})

    async def description(self, _: Request) -> Response:
        return JSONResponse(openapi.document(self.limits))

    async def description_page(self, _: Request) -> Response:
        return Response(self.addresses, media_type="text/html")

    async def page(self, _: Request) -> Response:
        return Response(template("serve.html"), media_type="text/html")

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise Refused(404, "there is nothing here", reason="path")
        return Response(template(name), media_type=STATIC[name])

    # What they share

    async def reload(self, name: str | None = None) -> bool:
        """Models anew whose files are others; False where one cannot be loaded."""
        try:
            changed = await asyncio.to_thread(self.models.reload, name)
        except UserError as error:
            self.say(f"not loaded anew: {error}")
            return False
        for sentence in changed or ["loaded anew: no file has changed"]:
            self.say(sentence)
        return True

    async def in_thread(self, function: Callable[..., Any], *given: Any) -> Any:
        """Where it may take long, the others go on."""
        return await asyncio.get_running_loop().run_in_executor(self.answering.pool, function, *given)

    def model(self, request: Request) -> Hosted:
        return self.models.find(**place(request))

    def threshold(self, hosted: Hosted) -> float:
        return hosted.about.threshold if self.min_probability is None else self.min_probability

    def count(self, request: Request, hosted: Hosted, n: int) -> None:
        self.metrics.pictures.labels(hosted.name).inc(n)
        request.scope["state"]["about"] = f" {hosted.name} {hosted.version} {n}"


def place(request: Request) -> dict[str, str | None]:
    """The model and version that an address names."""
    return {key: request.path_params.get(key) for key in ("name", "version")}


def settings(request: Request, names: tuple[str, ...]) -> dict[str, str]:
    """What stands behind the question mark. Raises Refused for what means nothing."""
    given = request.query_params.multi_items()
    for name, _ in given:
        if name not in names:
            raise Refused(400, f"{name[:64]!r} means nothing here; there are: {', '.join(names)}", reason="query")
    return dict(given)


def whole(text: str, least: int, most: int, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and least <= int(text) <= most):
        raise Refused(400, f"{what} must be a whole number from {least} to {most}", reason="query")
    return int(text)


def loose_json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused(400, "the request is no JSON object", reason="protocol")
    return found


def template(name: str) -> str:
    return (files("resnetkit") / "templates" / name).read_text(encoding="utf-8")


def application(service: Service) -> App:
    """Every address and what answers there. Whatever is refused or fails is raised, for the doorkeeper to answer."""
    model = "/v2/models/{name}"
    versions = (model, f"{model}/versions/{{version}}")
    routes = [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/heatmap", service.heat_map, methods=["POST"]),
        Route("/v2/health/live", service.live),
        Route("/v2/health/ready", service.readiness),
        Route("/v2", service.server),
        *(Route(path, service.model_metadata) for path in versions),
        *(Route(f"{path}/ready", service.model_ready) for path in versions),
        *(Route(f"{path}/config", service.model_config) for path in versions),
        *(Route(f"{path}/infer", service.infer, methods=["POST"]) for path in versions),
        Route("/v2/repository/index", service.index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", service.load, methods=["POST"]),
        Route("/metrics", service.scrape),
        Route("/openapi.json", service.description),
        Route("/docs", service.description_page),
        Route("/", service.page),
        Route("/static/{name}", service.static),
    ]
    router = Router(routes, redirect_slashes=False)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = service  # where there is one, the router raises what it refuses
        try:
            await router(scope, receive, send)
        except HTTPException as error:
            sentence = {404: "there is nothing here", 405: "this address takes another method"}[error.status_code]
            allow = (error.headers or {}).get("Allow")
            raise Refused(error.status_code, sentence, reason="path", allow=allow) from None

    return answer
