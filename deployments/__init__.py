"""Serve classes: composition roots that put parts of `serve_app` onto Ray. The only importer of ray in the serving path."""
