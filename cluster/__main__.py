"""`python -m cluster`: the command line where `aurora-cli` is not installed."""

from cluster.cli import app

app()
