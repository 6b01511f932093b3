"""Redis: the only importer of the client library. Every state change is one script in `lua/`."""
