"""Programs of the operating system: found, installed without a service where that may be, else asked for in one line."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from cluster import packages
from cluster.failures import LifecycleError

pytestmark = pytest.mark.integration


def script(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


