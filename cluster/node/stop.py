"""Stopping this machine's node."""

from cluster.down import keep_logs
from cluster.failures import LifecycleError
from cluster.processes import belonging_to, end
from cluster.settings import Settings


def stop(settings: Settings) -> int:
    """Stop what `node start` started here and return how many processes that were.

    Raises:
        LifecycleError: something survived even SIGKILL.
    """
    found = belonging_to(settings.home)
    if left := end(lambda: belonging_to(settings.home), patience=15):
        raise LifecycleError(f"These processes do not end, not even by SIGKILL: {', '.join(str(each.pid) for each in left)}.")
    keep_logs(settings)
    return len(found)
