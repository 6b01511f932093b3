"""A folder for what vLLM and PyTorch leave lying about: sockets and caches that nobody clears away, least of all after a kill."""

import atexit
import shutil
import tempfile

SCRATCH = tempfile.mkdtemp(prefix="aurora-vllm-")
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)
tempfile.tempdir = SCRATCH  # of this process; the others are told by TMPDIR
