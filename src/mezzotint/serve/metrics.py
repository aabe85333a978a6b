"""What operators see at `/metrics`: counts and times, never a prompt, an id or a path.

Names follow those that SGLang's diffusion server made known.
"""

import time
from typing import Any  # Any: JSON

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.waiting = Gauge("num_queue_reqs", "jobs that wait", registry=registry)
        self.running = Gauge("num_running_reqs", "jobs that run", registry=registry)
        self.requests = Counter("requests", "jobs by how they ended", ["dialect", "status"], registry=registry)
        self.latency = Histogram("request_latency_seconds", "from taken to ended", buckets=BUCKETS, registry=registry)
        self.queue_time = Histogram("queue_time_seconds", "from taken to begun", buckets=BUCKETS, registry=registry)
        self.steps = Counter("steps", "network evaluations", registry=registry)
        self.pictures = Counter("pictures", "finished pictures", registry=registry)
        self.engine_deaths = Counter("engine_deaths", "times that the engine broke down", registry=registry)
        self.per_second = Gauge("steps_per_second", "network evaluations, over the last scrapes", registry=registry)
        self.model = Info("model_loaded", "the model that is loaded", registry=registry)
        self._seen = (time.monotonic(), 0.0)

    def accepted(self, dialect: str) -> None:
        """A job was taken."""
        self.requests.labels(dialect, "accepted").inc()

    def refused(self, dialect: str) -> None:
        """A job was turned away because too many were there."""
        self.requests.labels(dialect, "refused").inc()

    def ended(self, dialect: str, status: str, seconds: float) -> None:
        """A job has ended."""
        self.requests.labels(dialect, status).inc()
        self.latency.observe(seconds)

    def waited(self, seconds: float) -> None:
        """A job has begun."""
        self.queue_time.observe(seconds)

    def queued(self, waiting: int, running: int) -> None:
        """How many there are."""
        self.waiting.set(waiting)
        self.running.set(running)

    def loaded(self, model: dict[str, Any]) -> None:
        """A model was loaded."""
        self.model.info({"name": model["name"], "preset": model["preset"], "dtype": model["dtype"]})

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        done = self.registry.get_sample_value("steps_total") or 0.0
        now = time.monotonic()
        before, then = self._seen
        if now - before >= 1:
            self.per_second.set((done - then) / (now - before))
            self._seen = now, done
        return generate_latest(self.registry)
