"""The description of the API: whole, in one error shape, true of what the routes answer, and without any other host."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.api.about import ENDPOINTS, About
from serve_app.api.access import Access
from serve_app.api.app import build_app
from serve_app.api.wire import ChatRequest, ChatResponse, EngineView
from tests.support.stack import Stack

Spec = dict[str, Any]


async def _yes() -> bool:
    return True


def app_of(service: Any) -> FastAPI:
    engines = [EngineView(pool="scripted", engine="scripted", model="scripted-1", language_model=False)]
    return build_app(service, Access(), About(engines, ping=_yes))


@pytest.fixture(scope="module")
def spec() -> Spec:
    return app_of(SimpleNamespace(in_flight=0)).openapi()


def operations(spec: Spec) -> Iterator[tuple[str, Spec]]:
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def referred(spec: Spec, schema: Spec) -> Spec:
    """Return the schema that a `$ref` points to."""
    name = schema["$ref"].rsplit("/", 1)[1]
    return dict(spec["components"]["schemas"][name])


def test_every_field_of_every_schema_has_a_description_and_an_example(spec: Spec) -> None:
    missing = []
    for name, schema in spec["components"]["schemas"].items():
        if not schema.get("description"):
            missing.append(f"{name} has no description")
        for field, facts in schema.get("properties", {}).items():
            described = facts.get("description") or ("$ref" in facts and referred(spec, facts).get("description"))
            if not described:
                missing.append(f"{name}.{field} has no description")
            if not facts.get("examples"):
                missing.append(f"{name}.{field} has no example")
    assert missing == []


def test_every_parameter_has_a_description_and_an_example(spec: Spec) -> None:
    missing = []
    for name, operation in operations(spec):
        assert operation.get("summary"), name
        for parameter in operation.get("parameters", []):
            if not parameter.get("description"):
                missing.append(f"{name}: {parameter['name']} has no description")
            if not (parameter.get("example") or parameter.get("examples") or parameter["schema"].get("examples")):
                missing.append(f"{name}: {parameter['name']} has no example")
    assert missing == []


def test_there_is_one_error_schema_and_every_operation_uses_it_alone(spec: Spec) -> None:
    assert [n for n in spec["components"]["schemas"] if "Error" in n] == ["ErrorBody", "ErrorDetail"]
    for name, operation in operations(spec):
        refusals = {code: r for code, r in operation["responses"].items() if not code.startswith("2")}
        assert set(refusals) == {"4XX", "5XX"}, name
        for refusal in refusals.values():
            assert refusal["content"] == {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}


def test_the_examples_of_a_request_are_valid_requests(spec: Spec) -> None:
    schemas = spec["components"]["schemas"]
    request = {name: facts["examples"][0] for name, facts in schemas["ChatRequest"]["properties"].items()}
    assert ChatRequest.model_validate(request).message == "Hello Robbie!"
    ChatResponse.model_validate({name: facts["examples"][0] for name, facts in schemas["ChatResponse"]["properties"].items()})


def test_every_endpoint_that_the_root_names_exists_and_the_other_way_round(spec: Spec) -> None:
    named = {re.sub(r"\{\w+\}", "{}", name) for name in ENDPOINTS}
    assert {re.sub(r"\{\w+\}", "{}", name) for name, _ in operations(spec)} | {"WS /ws/{}"} == named


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_the_pages_of_the_docs_refer_to_no_other_host(page: str) -> None:
    transport = httpx.ASGITransport(app=app_of(SimpleNamespace(in_flight=0)))
    async with httpx.AsyncClient(transport=transport, base_url="http://aurora") as client:
        text = (await client.get(page)).text
        assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\"' )]*", text) == []
        linked = [link for link in re.findall(r"(?:src|href)=\"([^\"#]+)\"", text) if not link.startswith("data:")]
        assert linked
        for link in linked:
            assert (await client.get(link)).status_code == 200, link


def any_of(schema: Spec, spec: Spec) -> st.SearchStrategy[Any]:
    """Return values that the schema allows, as far as it says."""
    if "$ref" in schema:
        return any_of(referred(spec, schema), spec)
    if "anyOf" in schema:
        return st.one_of([any_of(option, spec) for option in schema["anyOf"]])
    match schema.get("type"):
        case "string":
            if "pattern" in schema:
                return st.from_regex(re.compile(schema["pattern"].replace("$", r"\Z"), re.ASCII))
            return st.text(st.characters(codec="utf-8"), max_size=min(40, schema.get("maxLength", 40)))
        case "integer":
            return st.integers(schema.get("minimum", 0), schema.get("maximum", 100))
        case "number":
            low, high = schema.get("minimum", schema.get("exclusiveMinimum", 0)), schema.get("maximum", 10)
            return st.floats(low, high, exclude_min="exclusiveMinimum" in schema)
        case "boolean":
            return st.booleans()
        case "object":
            fields = {name: any_of(facts, spec) for name, facts in schema["properties"].items()}
            needed = schema.get("required", [])
            return st.fixed_dictionaries(
                {n: s for n, s in fields.items() if n in needed}, optional={n: s for n, s in fields.items() if n not in needed}
            )
        case _:
            return st.none()


def check_against(value: Any, schema: Spec, spec: Spec, at: str = "") -> None:
    """Check that a value is what the schema says: names, types, nothing needed missing."""
    if "$ref" in schema:
        check_against(value, referred(spec, schema), spec, at)
    elif schema.get("type") == "object" and "properties" in schema:
        assert isinstance(value, dict), at
        assert set(schema.get("required", [])) <= set(value) <= set(schema["properties"]), at
        for name, inner in value.items():
            check_against(inner, schema["properties"][name], spec, f"{at}.{name}")
    elif schema.get("type") == "array":
        for inner in value:
            check_against(inner, schema["items"], spec, f"{at}[]")
    elif "type" in schema:
        kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "null": type(None)}
        assert isinstance(value, kinds[schema["type"]]), at


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app_of(stack.service)), base_url="http://aurora") as client:
        yield client


@pytest.mark.integration
@pytest.mark.parametrize("route", ["/api/chat", "/api/sessions", "/api/conversations"])
async def test_what_the_schema_allows_is_answered_as_the_schema_says(client: httpx.AsyncClient, spec: Spec, route: str) -> None:
    operation = spec["paths"][route]["post"]
    body_schema = operation["requestBody"]["content"]["application/json"]["schema"]
    seen: list[int] = []

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(body=any_of(body_schema, spec))
    def bodies(body: Spec) -> None:
        drawn.append(body)

    drawn: list[Spec] = []
    await asyncio.to_thread(bodies)
    for body in drawn:
        slow = {**(body.get("options") or {}), "words": 3, "words_per_second": None} if route == "/api/chat" else None
        sent = {**body, **({"options": slow, "stream": False} if slow else {})}
        answer = await client.post(route, json=sent)
        seen.append(answer.status_code)
        assert answer.status_code < 500, (sent, answer.text)
        documented = operation["responses"].get(str(answer.status_code)) or operation["responses"]["4XX"]
        check_against(answer.json(), documented["content"]["application/json"]["schema"], spec)
    assert any(status < 300 for status in seen), seen


@pytest.mark.integration
async def test_what_is_read_back_is_what_the_schema_says(client: httpx.AsyncClient, spec: Spec) -> None:
    said = (await client.post("/api/chat", json={"client_id": "ann", "message": "Hello"})).json()
    for path, url in {
        "/": "/",
        "/health": "/health",
        "/api/personalities": "/api/personalities",
        "/api/sessions": "/api/sessions",
        "/api/conversations": "/api/conversations?client_id=ann",
        "/api/turns/{turn_id}": f"/api/turns/{said['turn_id']}",
        "/api/conversations/{conversation_id}/history": f"/api/conversations/{said['conversation_id']}/history",
    }.items():
        schema = spec["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        answer = await client.get(url)
        assert answer.status_code == 200, url
        check_against(answer.json(), schema, spec, path)
