"""The gateway's Prometheus metrics, made from its counts when someone asks: counting costs the loop an addition."""

import itertools
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gateway.certificate import seconds_left
from gateway.counts import ACCEPT_BOUNDS_S, REFUSALS, Counts, Gauges
from gateway.settings import Gateway
from pollen import __version__, topics

_RECEIVED: Final = (*topics.FROM_DEVICE, "other")
_SENT: Final = (*topics.TO_DEVICE, "head", "weights", "bundle", "infer")


class GatewayMetrics(Collector):
    """`gauges` and `settings` are called at each scrape, from a thread that is not the loop's."""

    def __init__(self, counts: Counts, gauges: Callable[[], Gauges], settings: Callable[[], Gateway]) -> None:
        self._counts = counts
        self._gauges = gauges
        self._settings = settings

    def collect(self) -> Iterator[Metric]:
        """All metrics of the gateway itself."""
        yield from self._traffic()
        yield from self._uploads()
        yield from self._state(self._gauges())
        settings = self._settings()
        info = {"version": __version__, "gateway": settings.name, "fleet": settings.fleet}
        yield InfoMetricFamily("pollen_gateway_build", "This gateway and its software.", info)
        yield self._certificates(settings)

    def _traffic(self) -> Iterator[Metric]:
        counts = self._counts
        for name, text, leaves, values in (
            ("received_messages", "Messages from the broker.", _RECEIVED, counts.received),
            ("received_bytes", "Payload bytes from the broker.", _RECEIVED, counts.received_bytes),
            ("sent_messages", "Messages to the broker.", _SENT, counts.sent),
            ("sent_bytes", "Payload bytes to the broker.", _SENT, counts.sent_bytes),
        ):
            family = CounterMetricFamily(f"pollen_gateway_{name}", text, labels=("kind",))
            for leaf in leaves:
                family.add_metric((leaf,), values[leaf])
            yield family
        refused = CounterMetricFamily("pollen_gateway_refused_messages", "Messages not passed on.", labels=("reason",))
        for reason in REFUSALS:
            refused.add_metric((reason,), counts.refused[reason])
        yield refused

    def _uploads(self) -> Iterator[Metric]:
        counts = self._counts
        yield CounterMetricFamily(
            "pollen_gateway_uploads_sent", "Updates and results handed to the server.", counts.uploads
        )
        yield CounterMetricFamily(
            "pollen_gateway_uploads_accepted", "Updates and results the server has accepted.", counts.accepted
        )
        bounds = [*map(str, ACCEPT_BOUNDS_S), "+Inf"]
        sums = itertools.accumulate(counts.accept_buckets)
        yield HistogramMetricFamily(
            "pollen_gateway_accept_seconds",
            "From an upload's arrival to the server's acceptance.",
            buckets=list(zip(bounds, sums, strict=True)),
            sum_value=counts.accept_s,
        )
        yield CounterMetricFamily(
            "pollen_gateway_pauses", "Times nothing was read because of limits.inflight_bytes.", counts.pauses
        )

    def _state(self, now: Gauges) -> Iterator[Metric]:
        connected = GaugeMetricFamily("pollen_gateway_connected", "1 while connected.", labels=("peer",))
        connected.add_metric(("broker",), now.broker_connected)
        connected.add_metric(("server",), now.server_connected)
        yield connected
        again = CounterMetricFamily("pollen_gateway_reconnects", "Connections after the first.", labels=("peer",))
        again.add_metric(("broker",), max(0, self._counts.broker_connections - 1))
        again.add_metric(("server",), max(0, self._counts.server_connections - 1))
        yield again
        for name, text, value in (
            ("in_flight_uploads", "Messages not yet acknowledged to the broker.", now.in_flight),
            ("in_flight_bytes", "Bytes of uploads not yet accepted by the server.", now.in_flight_bytes),
            ("left_uploads", "Uploads left with the broker for lack of memory, fetched later.", now.left_uploads),
            ("devices_known", "Devices with a retained state.", now.devices_known),
            ("devices_online", "Devices whose newest state is a birth.", now.devices_online),
            ("devices_limited", "Devices over a rate limit within the last minute.", now.devices_limited),
        ):
            yield GaugeMetricFamily(f"pollen_gateway_{name}", text, value)
        waiting = GaugeMetricFamily("pollen_gateway_queue_length", "What waits, by queue.", labels=("queue",))
        for queue, length in now.waiting.items():
            waiting.add_metric((queue,), length)
        yield waiting

    @staticmethod
    def _certificates(settings: Gateway) -> Metric:
        family = GaugeMetricFamily(
            "pollen_gateway_certificate_expiry_seconds",
            "Seconds until this gateway's certificate runs out, negative afterwards; 0 when it can't be read.",
            labels=("peer",),
        )
        for peer, file in (("broker", settings.broker.certificate), ("server", settings.server.certificate)):
            if file is not None:
                family.add_metric((peer,), seconds_left(file) or 0.0)
        return family


def registry(collector: Collector) -> CollectorRegistry:
    """`collector` and process_*, in a registry of this process's own."""
    made = CollectorRegistry()
    made.register(collector)
    ProcessCollector(registry=made)
    return made
