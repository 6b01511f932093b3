"""Stopping what an `up` started, all of it and nothing else."""

import shutil
from collections.abc import Callable

import psutil

from cluster import redis_server, run_record
from cluster.failures import LifecycleError
from cluster.processes import belonging_to, end, find, is_alive
from cluster.run_record import RunRecord
from cluster.settings import Settings


def stop(settings: Settings) -> list[str]:
    """Stop everything that belongs to this home and return what was stopped, in words; the data stays.

    Ray goes first, so that nothing writes any more when Redis writes its last.

    Raises:
        LifecycleError: something survived even SIGKILL.
    """
    record = run_record.load(settings.home)
    redis = find(record.redis.pid, record.redis.at) if record and record.redis else None
    sessions = record.sessions if record else []
    stopped = []

    def ray_and_serve() -> list[psutil.Process]:
        return [process for process in belonging_to(settings.home, sessions) if process != redis]

    if found := ray_and_serve():
        _end_ray(record)
        _end_all(ray_and_serve)
        stopped.append(f"Ray and Serve ({len(found)} processes)")
    if record and redis:
        redis_server.shut_down(redis, record.redis_url)
        stopped.append("Redis")
    _end_all(lambda: belonging_to(settings.home, sessions))
    keep_logs(settings)
    run_record.forget(settings.home)
    return stopped


def _end_ray(record: RunRecord | None) -> None:
    """Let `ray start` end its children itself, in its own order."""
    head = find(record.ray.pid, record.ray.at) if record and record.ray else None
    if head:
        end(lambda: [head] if is_alive(head) else [], patience=15)


def _end_all(processes: Callable[[], list[psutil.Process]]) -> None:
    if left := end(processes, patience=5):
        numbers = ", ".join(str(process.pid) for process in left)
        raise LifecycleError(f"These processes of Aurora's do not end, not even by SIGKILL: {numbers}.")


def keep_logs(settings: Settings) -> None:
    """Move the logs of Ray and Serve out of Ray's folder to `ray-last` among ours, and remove that folder."""
    logs = settings.ray_folder / "session_latest" / "logs"
    if logs.is_dir():
        kept = settings.logs / "ray-last"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(logs, kept, symlinks=True, ignore_dangling_symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(settings.ray_folder, ignore_errors=True)
