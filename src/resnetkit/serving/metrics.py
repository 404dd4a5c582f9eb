"""What Prometheus reads: requests, refusals, batches, models. In a registry of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters and histograms; any thread may add to them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        about: Any = {"registry": self.registry}
        ProcessCollector(registry=self.registry)
        self.requests = Counter("resnet_requests", "Answered requests.", ["route", "status"], **about)
        self.seconds = Histogram(
            "resnet_request_seconds", "From a request's headers to its answer.", ["route"], buckets=SECONDS, **about
        )
        self.refused = Counter("resnet_refused", "Requests that got no answer, by reason.", ["reason"], **about)
        self.pictures = Counter("resnet_pictures", "Pictures that were answered.", ["model"], **about)
        self.batch = Histogram(
            "resnet_batch_pictures", "Pictures in a batch of the engine.", ["model"], buckets=SIZES, **about
        )
        self.engine = Histogram(
            "resnet_batch_seconds", "Seconds that the engine took for a batch.", ["model"], buckets=SECONDS, **about
        )
        self.under_way = Gauge("resnet_pictures_under_way", "Pictures admitted and not answered.", ["model"], **about)
        self.models = Gauge("resnet_model", "1 for each version that answers.", ["model", "version", "engine"], **about)

    def batched(self, model: str, n: int, seconds: float) -> None:
        """A batch of a model's engine."""
        self.batch.labels(model).observe(n)
        self.engine.labels(model).observe(seconds)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self, models: Iterable[tuple[str, str, str, int]]) -> bytes:
        """What Prometheus reads. `models`: name, version, engine and pictures under way of each."""
        self.models.clear()
        self.under_way.clear()
        for name, version, engine, under_way in models:
            self.models.labels(name, version, engine).set(1)
            self.under_way.labels(name).inc(under_way)
        return generate_latest(self.registry)
