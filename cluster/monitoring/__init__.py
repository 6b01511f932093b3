"""Aurora's Grafana dashboard, put where Ray keeps its own, and a configuration for Prometheus.

Ray's head writes its dashboards, and Grafana's configuration that points at them, when it starts. It is told a folder of
ours to write them to (`DASHBOARDS` in Ray's own folder), which already holds ours: one Grafana then shows all of them.
"""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

DASHBOARDS = "dashboards"


def add_dashboard(folder: Path) -> None:
    """Put Aurora's dashboard into `folder`, Ray's own, before Ray's head starts there."""
    target = folder / DASHBOARDS
    target.mkdir(exist_ok=True)
    with as_file(files(__package__) / "aurora.json") as dashboard:
        shutil.copy(dashboard, target)


def environment(folder: Path) -> dict[str, str]:
    """Return what makes a Ray head whose files lie in `folder` write its dashboards beside ours."""
    return {"RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR": str(folder / DASHBOARDS)}
