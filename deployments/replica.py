"""What every replica does first, whichever deployment it is of."""

import gc
import logging

from deployments.loopback import keep_on_loopback
from serve_app.settings import Settings

OURS = ("serve_app", "deployments")


def prepare_replica() -> Settings:
    """Make this process a replica of Aurora and return the settings of its node."""
    settings = Settings()
    if settings.loopback:
        keep_on_loopback()
    _log_beside_serve()
    # A turn makes many short-lived objects: the collector need not run after every 700 of them. (Serve itself freezes
    # what was imported, `RAY_SERVE_FREEZE_GC_ON_STARTUP`.)
    gc.set_threshold(20_000, 20, 50)
    return settings


def _log_beside_serve() -> None:
    """Let our loggers write where Serve writes, as Serve writes; its own chatter below WARNING is set in the configuration."""
    handlers = logging.getLogger("ray.serve").handlers
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.propagate = not handlers
        logger.setLevel(logging.INFO)
