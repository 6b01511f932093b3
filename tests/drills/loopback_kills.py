"""Kill the Redis primary in the instant after an acknowledgement, again and again: what was acknowledged must be there.

`python -m tests.drills.loopback_kills` does it a hundred times on this machine's loopback address, half of them after a 200 of
`POST /api/chat`, half after an `accepted` while the answer is still being written. Replicas and kills are real; in place of
Sentinels, which take seconds to decide each time, the replica that has most is promoted at once, as they would.
`tests/integration/test_durability_kills.py` does a few of the same; the drills in the lab have Sentinels.
"""

import argparse
import asyncio
import json
import logging
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis

from tests.support.clients import read_sse
from tests.support.redis_process import RedisProcess
from tests.support.redis_trio import RedisTrio, newest_redis
from tests.support.sentinel_liar import SentinelLiar
from tests.support.stack import Stack


@dataclass(frozen=True)
class Kill:
    """One of them. `kept`: all that was acknowledged was in the new primary the moment it was one."""

    after: str
    kept: bool
    again_s: float
    """Until the new primary, too, had acknowledged something."""


async def kills(servers: RedisTrio, count: int) -> AsyncGenerator[Kill, None]:
    """Kill the primary `count` times, after a 200 and after an `accepted` in turn."""
    async with (
        SentinelLiar(servers.primary.port) as sentinel,
        Stack(sentinel.url, replicas=1) as stack,
        stack.serving() as base,
        httpx.AsyncClient(base_url=base, timeout=60) as http,
    ):
        for number in range(count):
            body = {"client_id": f"client{number}", "message": f"Remember {number}", "options": {"words": 20}}
            if number % 2:
                answer = await http.post("/api/chat", json=body)
                servers.primary.kill()
                assert answer.status_code == 200, answer.text
                old, killed = servers.promote(), time.monotonic()
                reply = answer.json()
                kept = stored(servers.primary, reply["conversation_id"]) == [body["message"], reply["response"]]
            else:
                streamed = {**body, "stream": True, "options": {"words": 20, "words_per_second": 100}}
                async with http.stream("POST", "/api/chat", json=streamed) as response:
                    events = read_sse(response)
                    accepted = await anext(events)
                    servers.primary.kill()
                    assert accepted.event == "accepted"
                    old, killed = servers.promote(), time.monotonic()
                    kept = stored(servers.primary, accepted.data["conversation_id"])[:1] == [body["message"]]
                    sentinel.named = servers.primary.port
                    rest = [event async for event in events]
                    assert rest[-1].event == "done", rest[-1]
            sentinel.named = servers.primary.port
            again = await http.post("/api/chat", json={"client_id": "again", "message": "And now?", "options": {"words": 1}})
            assert again.status_code == 200, again.text
            yield Kill("200" if number % 2 else "accepted", kept, time.monotonic() - killed)
            await asyncio.to_thread(servers.restart, old)
            await asyncio.to_thread(servers.until_whole)


def stored(server: RedisProcess, conversation_id: str) -> list[str]:
    """Return what the messages of a conversation say, as this server has them.

    The reply of an end that is stored and waited for is among them, also where its announcement went with the primary: a
    primary may tell its subscribers before it tells its replicas, and whoever meets the end announces it again (decision 0008).
    """
    with redis.Redis(port=server.port, protocol=2) as client:
        last, open_turn = client.hmget(f"aurora:conversation:{conversation_id}", "last_seq", "open_turn")
        raw = [client.get(f"aurora:message:{conversation_id}:{seq}") for seq in range(1, int(last or 0) + 1)]
        if open_turn:
            state, reply = client.hmget(f"aurora:turn:{open_turn.decode()}", "state", "reply")
            raw.append(reply if state == b"closing" else None)
    return [json.loads(message)["content"] for message in raw if message]


async def main(count: int) -> int:
    """Do it `count` times, show how it goes, and return the exit status."""
    logging.disable(logging.WARNING)  # that Redis is away is what this is about
    done: list[Kill] = []
    with tempfile.TemporaryDirectory() as folder:
        servers = RedisTrio(newest_redis(), Path(folder), sentinels=0)
        try:
            servers.start()
            async with aclosing(kills(servers, count)) as them:
                async for kill in them:
                    done.append(kill)
                    print(f"\r{len(done)} of {count} kills: {sum(k.kept for k in done)} kept", end="", flush=True)
        finally:
            servers.close()
    print(f"; the next acknowledgement after {max(kill.again_s for kill in done):.2f} s at most")
    return 0 if all(kill.kept for kill in done) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.drills.loopback_kills", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=100, help="how many times (default: 100)")
    raise SystemExit(asyncio.run(main(parser.parse_args().count)))
