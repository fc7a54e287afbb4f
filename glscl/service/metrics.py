"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Meters:
    """Counters, gauges and histograms of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "glscl_requests", "Requests that were answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "glscl_request_seconds", "Seconds from request to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.sent = Counter("glscl_sent_bytes", "Bytes of answers.", ["route"], registry=registry)
        self.active = Gauge("glscl_requests_active", "Requests that are being answered.", registry=registry)
        self.queue = Gauge("glscl_queue_texts", "Texts that wait for an index.", ["index"], registry=registry)
        self.batch = Histogram(
            "glscl_batch_texts", "Texts that were encoded at once.", ["index"], buckets=_SIZES, registry=registry
        )
        self.videos = Gauge("glscl_index_videos", "Videos of an index.", ["index"], registry=registry)

    def write(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
