#!/usr/bin/env bash
# Makes the environment that the tests of the engine `vllm` run in: `tests/vllm/install.sh .venv-vllm`. About 2.5 GB, 1-3 minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$1
torch=2.13.0

for python in python3.11 python3; do
    if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then found=$python; break; fi
done
if [ -z "${found:-}" ]; then
    echo "The tests of the engine vllm need Python 3.11 with venv, for which tests/vllm/requirements.lock was made." >&2
    exit 1
fi
pip() { "$venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }

echo "1/3 Making $venv with $("$found" --version) ..."
"$found" -m venv --clear "$venv"
echo "2/3 Installing PyTorch $torch, the CPU build ..."
pip install --no-deps --no-compile "torch==$torch"
# Told from its files: importing it needs packages that come only now.
if ! grep -q '^cuda.*= None$' "$venv"/lib/python3*/site-packages/torch/version.py; then
    echo "pip has installed a CUDA build of PyTorch. vLLM's CPU build needs PyTorch's CPU build: tell pip where that is, with" >&2
    echo "PIP_EXTRA_INDEX_URL (PyTorch's own documentation names the place), and run this again." >&2
    exit 1
fi
echo "3/3 Installing what tests/vllm/requirements.lock names ..."
# Compiled as they are imported: most never are.
pip install --no-deps --no-compile --require-hashes -r tests/vllm/requirements.lock
pip install --no-deps --no-build-isolation -e .
touch "$venv/installed"
