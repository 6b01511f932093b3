"""What Ray is told: the right instrument, bounded labels, and gauges again and again."""

import asyncio

import pytest
from ray.util.metrics import Counter, Gauge, Histogram

from deployments import meter
from deployments.meter import OTHER, VALUES_PER_LABEL, RayMeter
from serve_app.chat.meter import CONNECTIONS, METRICS, RESUMES, RUNNING, TURNS, Kind


async def measured_once() -> RayMeter:
    """Measure every metric of the table once."""
    told = RayMeter("star")
    for metric in METRICS:
        labels = ["value"] * len(metric.labels)
        match metric.kind:
            case Kind.COUNTER:
                told.count(metric, *labels)
            case Kind.GAUGE:
                told.set(metric, 1, *labels)
            case Kind.HISTOGRAM:
                told.observe(metric, 1, *labels)
    return told


async def test_every_metric_of_the_table_is_taken_by_ray_as_what_it_is() -> None:
    told = await measured_once()
    kinds = {Kind.COUNTER: Counter, Kind.GAUGE: Gauge, Kind.HISTOGRAM: Histogram}
    for metric in METRICS:
        instrument = told._instruments[metric.name]
        assert type(instrument) is kinds[metric.kind]
        assert instrument.info["tag_keys"] == ("node", *metric.labels)
        assert instrument.info["description"] == metric.meaning


def test_a_label_with_too_many_values_says_other_for_the_rest() -> None:
    told = RayMeter("star")
    values = [told._tags_of(RESUMES, (f"value{n}",))["over"] for n in range(VALUES_PER_LABEL + 10)]
    assert values[:VALUES_PER_LABEL] == [f"value{n}" for n in range(VALUES_PER_LABEL)]
    assert set(values[VALUES_PER_LABEL:]) == {OTHER}
    assert told._tags_of(RESUMES, ("value0",)) == {"node": "star", "over": "value0"}
    assert len(told._tags) == VALUES_PER_LABEL, "what is remembered stays small too"


async def test_gauges_beyond_the_bound_share_one_reading() -> None:
    told = RayMeter("star")
    for n in range(VALUES_PER_LABEL + 10):
        told.count(CONNECTIONS, f"value{n}")
    assert len(told._gauges) == VALUES_PER_LABEL + 1
    assert told._gauges[(CONNECTIONS.name, "star", OTHER)].value == 10


async def test_a_gauge_that_is_counted_goes_up_and_down() -> None:
    told = RayMeter("star")
    told.count(CONNECTIONS, "sse")
    told.count(CONNECTIONS, "sse")
    told.count(CONNECTIONS, "sse", by=-1)
    assert told._gauges[(CONNECTIONS.name, "star", "sse")].value == 1


async def test_gauges_are_told_again_because_rays_agent_forgets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "REFRESH_S", 0.01)
    told, again = RayMeter("star"), asyncio.Event()
    told.set(RUNNING, 3)
    key = (RUNNING.name, "star")
    reading = told._gauges[key]

    class Heard(Gauge):
        def set(self, value: float | None, tags: dict[str, str] | None = None) -> None:
            assert (value, tags) == (3, {"node": "star"})
            again.set()

    told._gauges[key] = reading._replace(gauge=Heard("aurora_heard", "", ("node",)))
    for _ in range(2):
        await asyncio.wait_for(again.wait(), 5)
        again.clear()


@pytest.mark.parametrize("labels", [(), ("robbie",), ("robbie", "scripted", "scripted-1", "done", "", "more")])
def test_too_few_or_too_many_labels_are_a_mistake_that_shows(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="argument"):
        RayMeter("star").count(TURNS, *labels)
