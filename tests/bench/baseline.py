"""The seed's own idea, for comparison: one FastAPI process + Redis, and what speaks. Not durable.

What the seed's document does per message, and nothing more: session, user message, event, history, reply, event. A
process that dies takes its answers with it. What speaks is the instant engine in process, or with a third argument an Ollama
there, through the `ollama` client, as in the seed's container: `python -m tests.bench.baseline PORT REDIS_URL [OLLAMA_URL]`.
"""

import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import ollama
import orjson
import uvicorn
import yaml
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from redis.asyncio import Redis

from serve_app.chat.engine import Prefix, Prompt, PromptMessage
from serve_app.chat.messages import Role, now
from serve_app.chat.options import Options
from serve_app.chat.personalities import Personality
from serve_app.engines.scripted import ScriptedConfig, ScriptedEngine

PERSONALITIES = Path(__file__).resolve().parents[2] / "configs" / "personalities"
HISTORY = 60
MODEL = "llama3.2"

Speak = Callable[[Prompt, Options, bool], AsyncIterator[str]]
"""Says a reply, in pieces where they are wanted."""


class Body(BaseModel):
    message: str
    client_id: str
    personality: str = "robbie"
    conversation_id: str | None = None
    stream: bool = False
    options: Options | None = None


def by_script() -> Speak:
    engine = ScriptedEngine(ScriptedConfig())

    async def speak(prompt: Prompt, options: Options, stream: bool) -> AsyncIterator[str]:
        async for piece in engine.generate(prompt, options, Prefix(), run="baseline"):
            yield piece.text

    return speak


def by_ollama(url: str) -> Speak:
    client = ollama.AsyncClient(host=url)

    async def speak(prompt: Prompt, options: Options, stream: bool) -> AsyncIterator[str]:
        messages = [{"role": "system", "content": prompt.personality.system}]
        messages += [{"role": str(m.role), "content": m.content} for m in prompt.messages]
        asked = {"temperature": 0.7, "num_predict": options.max_tokens or 1024}
        if stream:
            async for part in await client.chat(MODEL, messages, options=asked, stream=True):
                if part.message.content:
                    yield part.message.content
        else:
            yield (await client.chat(MODEL, messages, options=asked)).message.content or ""

    return speak


def build(redis_url: str, speak: Speak) -> FastAPI:
    app = FastAPI()
    redis = Redis.from_url(redis_url, protocol=2)
    known = {f.stem: Personality.model_validate(yaml.safe_load(f.read_text())) for f in PERSONALITIES.glob("*.yaml")}

    async def store(conversation: str, message: dict[str, Any]) -> None:
        seq = await redis.incr(f"base:seq:{conversation}")
        await redis.set(f"base:message:{conversation}:{seq}", orjson.dumps(message))
        event = {"type": "chat_message", "conversation_id": conversation, "client_id": message["client_id"], "node": "aurora"}
        await redis.publish("base:chat:message", orjson.dumps(event))

    async def begin(body: Body) -> tuple[str, Prompt]:
        session = await redis.get(f"base:session:{body.client_id}")
        conversation = body.conversation_id or (orjson.loads(session)["conversation"] if session else "")
        if not conversation:
            conversation = f"conv_{body.client_id}_{int(time.time())}"
        record = {"user_id": body.client_id, "node": "aurora", "created_at": now(), "conversation": conversation}
        await redis.set(f"base:session:{body.client_id}", orjson.dumps(record), ex=3600)
        message = {"role": "user", "content": body.message, "timestamp": now(), "client_id": body.client_id, "node": "aurora"}
        await store(conversation, message)
        last = int(await redis.get(f"base:seq:{conversation}") or 0)
        raw = await redis.mget([f"base:message:{conversation}:{n}" for n in range(max(1, last - HISTORY + 1), last + 1)])
        history = [orjson.loads(m) for m in raw if m]
        return conversation, Prompt(known[body.personality], tuple(PromptMessage(Role(m["role"]), m["content"]) for m in history))

    async def finish(body: Body, conversation: str, text: str) -> dict[str, Any]:
        reply = {
            "role": "assistant", "content": text, "timestamp": now(), "client_id": body.client_id, "node": "aurora",
            "personality": body.personality,
        }  # fmt: skip
        await store(conversation, reply)
        return {
            "response": text, "conversation_id": conversation, "node": "aurora", "personality": body.personality,
            "timestamp": reply["timestamp"],
        }  # fmt: skip

    @app.post("/api/chat")
    async def chat(body: Body) -> Response:
        conversation, prompt = await begin(body)
        pieces = speak(prompt, body.options or Options.model_construct(), body.stream)
        if not body.stream:
            text = "".join([piece async for piece in pieces])
            return Response(orjson.dumps(await finish(body, conversation, text)), media_type="application/json")

        async def stream() -> AsyncIterator[bytes]:
            said = []
            async for piece in pieces:
                said.append(piece)
                yield b"event: piece\ndata: %s\n\n" % orjson.dumps({"text": piece})
            yield b"event: done\ndata: %s\n\n" % orjson.dumps(await finish(body, conversation, "".join(said)))

        return StreamingResponse(stream(), media_type="text/event-stream")

    return app


if __name__ == "__main__":
    port, redis_url, *at_ollama = sys.argv[1:]
    app = build(redis_url, by_ollama(at_ollama[0]) if at_ollama else by_script())
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
