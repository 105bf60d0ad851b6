"""What the model server counts, as Prometheus reads it at /metrics. No label holds anything that a client sent."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from mi_llm.apps.model.engine import Engine

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics(Collector):
    """Counters of one server; the engines' own numbers are read when somebody asks."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = engines
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(self)
        self.requests = Counter("mi_llm_requests", "Answered requests", ["path", "status"], registry=self.registry)
        self.replies = Counter("mi_llm_replies", "Replies, by outcome", ["model", "finish"], registry=self.registry)
        self.seconds = Histogram(
            "mi_llm_reply_seconds", "Seconds from request to end of reply", ["model"], buckets=SECONDS, registry=self.registry
        )
        self.first = Histogram(
            "mi_llm_first_text_seconds", "Seconds from request to first text", ["model"], buckets=SECONDS, registry=self.registry
        )

    def collect(self) -> Iterator[Metric]:
        """The numbers that the engines keep."""
        waiting = GaugeMetricFamily("mi_llm_waiting", "Replies in the queue", labels=["model"])
        running = GaugeMetricFamily("mi_llm_running", "Replies being written", labels=["model"])
        read = CounterMetricFamily("mi_llm_prompt_tokens", "Tokens of prompts read", labels=["model"])
        written = CounterMetricFamily("mi_llm_reply_tokens", "Tokens of replies written", labels=["model"])
        for model, engine in self.engines.items():
            for gauge, number in zip((waiting, running), engine.open, strict=True):
                gauge.add_metric([model], number)
            read.add_metric([model], engine.read)
            written.add_metric([model], engine.written)
        yield from (waiting, running, read, written)

    def text(self) -> bytes:
        """The whole page."""
        return generate_latest(self.registry)
