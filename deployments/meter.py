"""Measurements by way of Ray: every node's agent serves them to Prometheus, next to Ray's own, as `ray_aurora_…`.

A counter `aurora_turns` is `ray_aurora_turns_total` there. Ray adds a label for the process, so replicas never collide.
"""

import asyncio
from typing import Final, NamedTuple

from ray.util.metrics import Counter, Gauge, Histogram

from serve_app.chat.meter import Kind, Meter, Metric

VALUES_PER_LABEL: Final = 50
"""Different values that a label may have in one replica; what comes beyond is counted as `OTHER`."""
OTHER: Final = "other"
REFRESH_S: Final = 5.0
"""Ray hands a gauge on once per setting, and its agent forgets one that it did not hear of for two exports (20 s)."""


class _Reading(NamedTuple):
    """What a gauge was set to last."""

    gauge: Gauge
    value: float
    tags: dict[str, str]


class RayMeter(Meter):
    """Reports what one replica measures. Lives as long as its replica; used from its event loop only."""

    def __init__(self, node: str) -> None:
        """Report for `node`, the operator's name of this machine."""
        self._node = node
        self._instruments: dict[str, Counter | Gauge | Histogram] = {}
        self._tags: dict[tuple[str, ...], dict[str, str]] = {}
        self._values: dict[tuple[str, str], set[str]] = {}
        self._gauges: dict[tuple[str, ...], _Reading] = {}
        self._refreshing: asyncio.TimerHandle | None = None

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """See `Meter.count`."""
        tags = self._tags_of(metric, labels)
        if metric.kind is Kind.GAUGE:
            before = self._gauges.get((metric.name, *tags.values()))
            self._set(metric, by + (before.value if before else 0), tags)
            return
        counter = self._instrument(metric)
        assert isinstance(counter, Counter), f"{metric.name} is no counter"
        counter.inc(by, tags=tags)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """See `Meter.set`."""
        self._set(metric, value, self._tags_of(metric, labels))

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """See `Meter.observe`."""
        histogram = self._instrument(metric)
        assert isinstance(histogram, Histogram), f"{metric.name} is no histogram"
        histogram.observe(value, tags=self._tags_of(metric, labels))

    def _set(self, metric: Metric, value: float, tags: dict[str, str]) -> None:
        gauge = self._instrument(metric)
        assert isinstance(gauge, Gauge), f"{metric.name} is no gauge"
        gauge.set(value, tags=tags)
        self._gauges[(metric.name, *tags.values())] = _Reading(gauge, value, tags)
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().call_later(REFRESH_S, self._refresh)

    def _refresh(self) -> None:
        for reading in self._gauges.values():
            reading.gauge.set(reading.value, tags=reading.tags)
        self._refreshing = asyncio.get_running_loop().call_later(REFRESH_S, self._refresh)

    def _instrument(self, metric: Metric) -> Counter | Gauge | Histogram:
        instrument = self._instruments.get(metric.name)
        if instrument is None:
            keys = ("node", *metric.labels)
            match metric.kind:
                case Kind.COUNTER:
                    instrument = Counter(metric.name, metric.meaning, keys)
                case Kind.GAUGE:
                    instrument = Gauge(metric.name, metric.meaning, keys)
                case Kind.HISTOGRAM:
                    instrument = Histogram(metric.name, metric.meaning, list(metric.buckets), keys)
            self._instruments[metric.name] = instrument
        return instrument

    def _tags_of(self, metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
        key = (metric.name, *labels)
        tags = self._tags.get(key)
        if tags is None:
            tags = {"node": self._node}
            for label, value in zip(metric.labels, labels, strict=True):
                tags[label] = self._bounded(metric.name, label, value)
            if OTHER not in tags.values():  # else the very thing that is to stay small would grow
                self._tags[key] = tags
        return tags

    def _bounded(self, name: str, label: str, value: str) -> str:
        values = self._values.setdefault((name, label), set())
        if value not in values:
            if len(values) >= VALUES_PER_LABEL:
                return OTHER
            values.add(value)
        return value
