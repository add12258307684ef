"""What the server counts, for Prometheus.

Takes what happens (requests, texts that have ended, the writer's load, the sessions' adaptations);
gives the text format of ``GET /metrics``. The registry is the server's own. Labels have few values:
routes are the server's own patterns, experts those that have answered, of which a thousand are told
apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aios.core.serving import Ending, WriterLoad

if TYPE_CHECKING:
    from aios.app.chat.adaptation_counts import AdaptationCounts
    from aios.app.chat.answering import Answering

MOST_EXPERTS = 1000
_OTHER = "other"
_METHODS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """All that is counted since the server was made.

    Args:
        load: What the writer has to do now.
        adaptations: How the adaptations of sessions have ended so far.
    """

    def __init__(
        self, load: Callable[[], WriterLoad], adaptations: Callable[[], AdaptationCounts]
    ) -> None:
        self.registry = CollectorRegistry()
        self._experts: set[str] = set()
        self._requests = Counter(
            "aios_requests", "Requests.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "aios_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._answers = Counter(
            "aios_answers",
            "Texts that have ended, by who wrote them.",
            ("expert", "ended"),
            registry=self.registry,
        )
        self._tokens = Counter(
            "aios_tokens", "Tokens of texts that have ended.", ("kind",), registry=self.registry
        )
        self._first = Histogram(
            "aios_first_token_seconds",
            "From the submission of a text to its first token, waiting included.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._each = Histogram(
            "aios_token_seconds",
            "Mean time of a token after the first, by text.",
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )
        self._adaptive = Counter(
            "aios_adapted_answers",
            "Texts in which a session's own adapter took part.",
            registry=self.registry,
        )
        self.registry.register(_LoadCollector(load))
        self.registry.register(_AdaptationCollector(adaptations))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request that was answered."""
        shown = method if method in _METHODS else _OTHER
        self._requests.labels(shown, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self, answer: Answering, ending: Ending) -> None:
        """Counts a text that has ended."""
        for expert, _ in answer.answered_by.experts or (("base", 1.0),):
            self._answers.labels(self._label(expert), ending.reason).inc()
        self._tokens.labels("prompt").inc(ending.prompt_tokens)
        self._tokens.labels("completion").inc(ending.completion_tokens)
        if answer.answered_by.adapted:
            self._adaptive.inc()
        if ending.completion_tokens > 0:
            self._first.observe(ending.seconds_to_first)
        if ending.completion_tokens > 1:
            rest = ending.seconds - ending.seconds_to_first
            self._each.observe(rest / (ending.completion_tokens - 1))

    def exposition(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self.registry)

    def _label(self, expert: str) -> str:
        if len(self._experts) < MOST_EXPERTS:
            self._experts.add(expert)
        return expert if expert in self._experts else _OTHER


class _LoadCollector(Collector):
    """Asks the writer when Prometheus asks."""

    def __init__(self, load: Callable[[], WriterLoad]) -> None:
        self._load = load

    def collect(self) -> Iterable[Metric]:
        load = self._load()
        yield GaugeMetricFamily("aios_writing", "Texts being written now.", load.writing)
        yield GaugeMetricFamily("aios_waiting", "Texts that wait for a place now.", load.waiting)
        yield CounterMetricFamily(
            "aios_written_tokens", "Tokens written since the model was loaded.", load.tokens
        )


class _AdaptationCollector(Collector):
    """Asks how many adaptations there were when Prometheus asks."""

    def __init__(self, adaptations: Callable[[], AdaptationCounts]) -> None:
        self._adaptations = adaptations

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(
            "aios_adaptations",
            "Adaptations of sessions, by what became of them.",
            labels=("ended",),
        )
        for ended, count in asdict(self._adaptations()).items():
            family.add_metric((ended,), count)
        yield family


class CountRequests:
    """Middleware: counts every request by the pattern of its route and the status of its answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status = 500  # where the application fails before it answers

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path", _OTHER)
            self.metrics.request(scope["method"], route, status, time.monotonic() - began)


def metrics_routes(metrics: Metrics) -> APIRouter:
    """``GET /metrics``."""
    router = APIRouter()

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def show() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router
