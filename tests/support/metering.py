"""A meter that keeps what it is told, for tests to look at."""

from collections import Counter, defaultdict

from serve_app.chat.meter import Kind, Meter, Metric


class Tally(Meter):
    """Everything measured, by metric and labels; refuses what the table does not allow."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.gauges: dict[tuple[str, ...], float] = {}
        self.values: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        key = self._key(metric, labels)
        if metric.kind is Kind.GAUGE:
            self.gauges[key] = self.gauges.get(key, 0) + by
        else:
            assert metric.kind is Kind.COUNTER
            assert by > 0
            self.counts[key] += int(by)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        assert metric.kind is Kind.GAUGE
        self.gauges[self._key(metric, labels)] = value

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        assert metric.kind is Kind.HISTOGRAM
        self.values[self._key(metric, labels)].append(value)

    @staticmethod
    def _key(metric: Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
        assert len(labels) == len(metric.labels), metric.name
        return metric.name, *labels
