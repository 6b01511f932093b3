"""One reply of the stand-in for Ollama: streamed or not, with all that can go wrong on the way."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tests.support import ollama_replies as replies
from tests.support.ollama_faults import Counts, Faults
from tests.support.ollama_http import Exchange


class Reply:
    """One reply."""

    def __init__(
        self, faults: Faults, counts: Counts, request: Exchange, model: str, messages: list[Any], num_ctx: int, *, thinking: bool
    ) -> None:
        self._faults, self._counts, self._request = faults, counts, request
        self._model, self._thinking, self._body, self._num_ctx = model, thinking, request.body, num_ctx
        said = str(messages.pop()["content"]) if messages[-1]["role"] == "assistant" else ""
        self._said = said.rstrip() if self._faults.prefix == "trim" else said
        self._messages = self._cut(messages)
        self._started = time.monotonic()
        self._sent = 0

    def _cut(self, messages: list[Any]) -> list[Any]:
        """Do what Ollama does with a prompt that is too long."""
        room, kept = self._num_ctx - len(replies.tokens_of(self._said)), messages
        system = [m for m in messages if m["role"] == "system"]
        others = [m for m in messages if m["role"] != "system"]
        while replies.count(kept) > room and len(others) > 1:
            others = others[1:]
            kept = [*system, *others]
        self._counts.truncated += len(kept) < len(messages)
        return kept

    async def run(self) -> None:
        request, faults, body = self._request, self._faults, self._body
        if self._said and faults.prefix == "refuse":
            return await request.fail(400, "Assistant response prefill is incompatible with enable_thinking.")
        thinks = self._thinking and (body.get("think") is not False or faults.thinks_anyway)
        thoughts = replies.thoughts(self._messages) if thinks else []
        said = "" if thinks or faults.prefix == "restart" else self._said
        tokens = replies.rest(self._model, self._messages, said) if faults.done_reason != "load" else []
        limit = int((body.get("options") or {}).get("num_predict", -1))
        allowed = len(thoughts) + len(tokens) if limit < 0 else limit
        if body.get("stream") is False:
            text = "".join(tokens[: max(0, allowed - len(thoughts))])
            count = min(allowed, len(thoughts) + len(tokens))
            return await request.answer(self._line(text, "".join(thoughts), **self._last(len(tokens), count)))
        for thought in thoughts[:allowed]:
            await self._pace()
            await request.line(self._line("", thought))
        for token in tokens[: max(0, allowed - len(thoughts))]:
            if await self._fails():
                return
            await self._pace()
            await request.line(self._line(token))
            self._sent += 1
        if await self._fails():
            return
        await request.line(self._line("", **self._last(len(thoughts) + len(tokens), min(allowed, len(thoughts) + len(tokens)))))
        await request.end()

    async def _pace(self) -> None:
        speed = self._faults.tokens_per_second
        await asyncio.sleep(1 / speed if speed else 0)

    async def _fails(self) -> bool:
        """Fail as the faults say, if it is time to; say whether the stream is over."""
        faults, request, sent = self._faults, self._request, self._sent
        if sent == faults.hang_after:
            await asyncio.Event().wait()
        if sent == faults.close_after:
            request.break_off()
        if sent == faults.error_after:
            await request.line({"error": faults.error})
        elif sent == faults.split_line_after:
            await request.raw(b'{"model": "stand-in", "message": {"role": "assi')
        elif sent != faults.end_after:
            return False
        await request.end()
        return True

    def _line(self, text: str, thinking: str = "", **last: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, **({"thinking": thinking} if thinking else {})}
        return {"model": self._body["model"], "created_at": now(), "message": message, "done": False, **last}

    def _last(self, wanted: int, sent: int) -> dict[str, Any]:
        took = int((time.monotonic() - self._started) * 1e9)
        prompt = {"prompt_eval_count": replies.count(self._messages) + len(replies.tokens_of(self._said))}
        return {
            "done": True,
            "done_reason": self._faults.done_reason or ("length" if sent < wanted else "stop"),
            "total_duration": took,
            "load_duration": 0,
            **({} if self._faults.no_prompt_count else prompt),
            "prompt_eval_duration": 0,
            "eval_count": sent,
            "eval_duration": took,
        }


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def render(messages: Sequence[replies.Message], faults: Faults) -> str:
    """Return the prompt as a template makes it: open at its end where a trailing assistant message is gone on from."""
    parts = [f"<|{m['role']}|>{m['content']}<|end|>" for m in messages]
    if messages[-1]["role"] != "assistant" or faults.prefix in ("restart", "refuse"):
        return "".join(parts) + "<|assistant|>"
    text = str(messages[-1]["content"])
    return "".join(parts[:-1]) + f"<|assistant|>{text.rstrip() if faults.prefix == 'trim' else text}"
