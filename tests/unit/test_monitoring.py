"""The table of metrics, the page that explains it and the dashboard that shows it say the same."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster import monitoring
from serve_app.chat.meter import MEASURED_SCRIPTS, METRICS, Kind, Metric

PROJECT = Path(__file__).resolve().parents[2]
DASHBOARD = PROJECT / "cluster" / "monitoring" / "aurora.json"
FUNCTIONS = {"sum", "rate", "histogram_quantile", "clamp_min", "by", "offset", "or", "label_values"}


def exported(metric: Metric) -> list[str]:
    """The names under which Prometheus gets a metric from Ray's agent."""
    name = f"ray_{metric.name}"
    match metric.kind:
        case Kind.COUNTER:
            return [f"{name}_total"]
        case Kind.GAUGE:
            return [name]
        case Kind.HISTOGRAM:
            return [f"{name}_bucket", f"{name}_sum", f"{name}_count"]


EXPORTED = {name: metric for metric in METRICS for name in exported(metric)}


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def words(expression: str) -> set[str]:
    """The identifiers of a PromQL expression, without what stands in strings or as a range."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', " ", expression)
    return set(re.findall(r"\b[A-Za-z_]\w*", bare))


def test_every_expression_names_only_metrics_of_the_table_and_labels_they_have() -> None:
    found = list(expressions())
    assert len(found) > 20
    for expression in found:
        used = words(expression) - FUNCTIONS
        metrics = used & EXPORTED.keys()
        assert metrics, expression
        labels = {"node"}.union(*(EXPORTED[name].labels for name in metrics))
        if any(name.endswith("_bucket") for name in metrics):
            labels.add("le")
        assert used - metrics <= labels, expression


def test_every_metric_of_the_table_is_shown() -> None:
    shown = {EXPORTED[name].name for expression in expressions() for name in words(expression) & EXPORTED.keys()}
    assert shown == {metric.name for metric in METRICS}


def test_rates_are_of_counters_and_quantiles_of_buckets() -> None:
    for expression in expressions():
        for name in re.findall(r"rate\((ray_\w+)", expression):
            assert name.endswith(("_total", "_bucket")), expression
        assert ("histogram_quantile" in expression) == ("_bucket" in expression), expression


def test_what_is_rare_is_never_shown_as_a_rate_which_misses_the_first_time() -> None:
    rare = ("takeovers", "takeover_pause", "resumes", "redis_reconnects", 'outcome="failed"')
    found = [expression for expression in expressions() if any(name in expression for name in rare)]
    assert len(found) >= 8
    assert [expression for expression in found if "rate(" in expression or " offset " not in expression] == []


def test_the_dashboard_takes_the_data_source_variable_that_ray_uses() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    sources = [panel["datasource"] for panel in panels()] + [t["datasource"] for panel in panels() for t in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_page_explains_every_metric_as_the_table_has_it() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (\w+) \| (.+) \|$", (PROJECT / "docs" / "metrics.md").read_text(), re.M
    )
    explained = {name: (kind, labels.strip(), unit, meaning) for name, kind, labels, unit, meaning in rows}
    expected = {}
    for metric in METRICS:
        name = exported(metric)[0].removesuffix("_bucket")
        expected[name] = (metric.kind.value, ", ".join(metric.labels) or "–", metric.unit, metric.meaning)
    assert explained == expected


def test_labels_never_hold_an_id() -> None:
    allowed = {"personality", "pool", "model", "outcome", "code", "over", "link", "script"}
    assert {label for metric in METRICS for label in metric.labels} <= allowed


def test_measured_scripts_are_scripts_and_append_is_none_of_them() -> None:
    scripts = {path.stem for path in (PROJECT / "serve_app" / "state" / "lua").glob("*.lua")}
    assert scripts >= MEASURED_SCRIPTS
    assert "append" not in MEASURED_SCRIPTS


def test_buckets_grow() -> None:
    for metric in METRICS:
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name


def test_the_dashboard_lies_where_ray_is_told_to_write_its_own(tmp_path: Path) -> None:
    monitoring.add_dashboard(tmp_path)
    folder = Path(monitoring.environment(tmp_path)["RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR"])
    assert json.loads((folder / "aurora.json").read_text()) == dashboard()
    monitoring.add_dashboard(tmp_path)  # a second start changes nothing
    assert [path.name for path in folder.iterdir()] == ["aurora.json"]


def test_the_configuration_of_prometheus_asks_the_head_for_the_nodes() -> None:
    config = yaml.safe_load((PROJECT / "cluster" / "monitoring" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["http_sd_configs"][0]["url"].endswith("/api/prometheus/sd")
