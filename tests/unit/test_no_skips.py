"""Where a skip counts as a failure, nothing passes that did not run."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

RUNS = "def test_runs(): pass\n"
SKIPS = "import pytest\ndef test_skips(): pytest.skip('no GPU')\n"
MARKED = "import pytest\n@pytest.mark.skip\ndef test_marked(): pass\n"
MODULE = "import pytest\npytest.importorskip('no_such_module')\ndef test_never(): pass\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [(RUNS, 0), (RUNS + SKIPS, 1), (RUNS + MARKED, 1), (RUNS + MODULE, 1), (MODULE, 1), ("", 5), (RUNS + "assert False", 2)],
    ids=["runs", "skips", "marked", "module", "module alone", "none", "broken"],
)
def test_a_run_passes_only_if_all_of_it_ran(tmp_path: Path, text: str, code: int) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(text)
    (tmp_path / "test_other.py").write_text(RUNS if text else "")
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.no_skips", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
