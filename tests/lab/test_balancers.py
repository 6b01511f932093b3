"""Load balancers in front of real nodes: one of them is killed, and nobody who sent a plain request notices."""

import asyncio

import httpx
import pytest

from cluster.lab import Lab
from tests.drills.balancer import balancer
from tests.support.lab import get
from tests.support.serving import undisturbed
from tests.support.waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

USERS = 8
"""With each program, and as many again who come once the node is dead."""
SLOW: dict[str, object] = {"words": 60, "words_per_second": 10}


@pytest.mark.usefixtures("whole")
async def test_a_node_killed_behind_a_balancer_costs_nobody_a_request(lab: Lab) -> None:
    """Users send no key and try nothing again. Both programs are there at once, so that one kill is enough."""
    head, victim = lab.cluster.head, next(n for n in lab.nodes if n not in (lab.cluster.head, lab.redis_primary()))
    sessions = f"{lab.url(head)}/api/sessions"

    def waits_at_victim(program: str) -> bool:
        found = get(sessions)["sessions"]
        return any(each["node"] == victim and each["client_id"].startswith(f"{program}_") for each in found)

    async def ask(http: httpx.AsyncClient, url: str, client_id: str) -> dict[str, str]:
        body = {"message": "Hello", "client_id": client_id, "personality": "robbie", "options": SLOW}
        answer = await http.post(f"{url}/api/chat", json=body)
        assert answer.status_code == 200, f"{client_id}: {answer.text}"
        return {**answer.json(), "client_id": client_id}

    with balancer(lab, "haproxy", 8080) as haproxy, balancer(lab, "nginx", 8081) as nginx:
        urls = {"haproxy": haproxy, "nginx": nginx}
        async with httpx.AsyncClient(timeout=90, trust_env=False) as http, asyncio.TaskGroup() as group:

            def come(numbers: range) -> list[asyncio.Task[dict[str, str]]]:
                users = [(program, number) for program in urls for number in numbers]
                return [group.create_task(ask(http, urls[program], f"{program}_{number}")) for program, number in users]

            asked = come(range(USERS))
            await until(lambda: all(waits_at_victim(program) for program in urls), 10)
            lab.kill(victim)
            assert not any(each.done() for each in asked), "the fault came too late"
            asked += come(range(USERS, 2 * USERS))

    whole, met = await undisturbed("Hello", SLOW), set()
    for answer in (each.result() for each in asked):
        assert answer["response"] == whole
        page = get(f"{lab.url(head)}/api/conversations/{answer['conversation_id']}/history", client_id=answer["client_id"])
        assert [message["role"] for message in page["messages"]] == ["user", "assistant"], "answered twice"
        if answer["node"] == victim:
            met.add(answer["client_id"].partition("_")[0])
    assert met == set(urls), "no turn that began at the victim was answered elsewhere"
