"""`/metrics` for Prometheus: the status of the loop when somebody asks. Needs `prometheus-client` (extra `live`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edge_sfda.errors import EngineError, UsageError
from edge_sfda.live.status import LoopStatus, Phase

if TYPE_CHECKING:
    from prometheus_client import Metric

HOST = "127.0.0.1"  # whoever wants it off the machine puts a proxy with a password before it


class Telemetry:
    """The server; it runs until `close`.

    Args:
        status: asked at each request, from a thread of the server's.
        port: 0 lets the system choose.
        host: to listen on.

    Raises:
        EngineError: `prometheus-client` is not installed.
        UsageError: the port is taken, or out of range.

    Attributes:
        port: that it listens on.
    """

    def __init__(self, status: Callable[[], LoopStatus], *, port: int, host: str = HOST) -> None:
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError as error:
            raise EngineError("metrics need prometheus-client; run pip install 'edge-sfda[live]'") from error
        registry = CollectorRegistry()
        registry.register(_Collector(status))
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except (OSError, OverflowError) as error:
            raise UsageError(f"metrics cannot be served on {host}:{port} ({error}); choose another port") from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2)


class _Collector:
    """What the registry asks: `collect` for values, `describe` for nothing, so that registering asks no loop."""

    def __init__(self, status: Callable[[], LoopStatus]) -> None:
        self._status = status

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        now = self._status()
        gauges = {
            "generation": (now.generation, "number of the deployed network, 0 for the source"),
            "frames_per_second": (now.fps, "predicted"),
            "confidence": (now.confidence, "mean of the newest prediction, 0..1"),
            "doubt_spreads": (now.doubt, "of the trigger's signals from their reference"),
            "reliability": (now.reliability, "mean of the burst's newest step, 0..1"),
            "burst_step": (now.step, "of the burst under way"),
            "stale": (now.stale, "1 while there is no sound frame"),
            "learning_seconds_in_hour": (now.learned_s, "spent in the last hour"),
        }
        for name, (value, meaning) in gauges.items():
            yield GaugeMetricFamily(f"edge_sfda_{name}", meaning, value=float(value))
        latency = GaugeMetricFamily("edge_sfda_latency_seconds", "of a prediction", labels=["quantile"])
        for quantile, milliseconds in zip(("0.5", "0.99"), now.latency_ms, strict=True):
            latency.add_metric([quantile], milliseconds / 1e3)
        yield latency
        phase = GaugeMetricFamily("edge_sfda_phase", "1 for what adaptation is doing", labels=["phase"])
        for one in Phase:
            phase.add_metric([one.value], float(one is now.phase))
        yield phase
        counters = {
            "frames": (now.frames, "predicted"),
            "dropped_frames": (now.capture.dropped, "replaced by a newer one before they were predicted"),
            "camera_opened": (now.capture.opened, "times"),
            "worker_restarts": (now.restarts, "after it died or hung"),
        }
        for name, (value, meaning) in counters.items():
            yield CounterMetricFamily(f"edge_sfda_{name}", meaning, value=float(value))
        faults = CounterMetricFamily("edge_sfda_faulty_frames", "kept out of learning", labels=["fault"])
        for fault, count in now.capture.faults.items():
            faults.add_metric([fault], float(count))
        yield faults
