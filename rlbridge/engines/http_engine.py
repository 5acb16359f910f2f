"""An engine behind HTTP: a vLLM, NeMo-RL's server, or anything with OpenAI's routes.

What it is, is found by asking it once. A failed call says whether the same may be sent again;
nothing is sent again here but what a closed connection swallowed.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from rlbridge.contracts.codecs.stream import chunks_from_sse, reply_from_chunks
from rlbridge.engines.config import PolicyConfig, check_url
from rlbridge.engines.engine import Delta, EngineCall, EngineInfo, Generation
from rlbridge.engines.probe import probe
from rlbridge.engines.replies import generations
from rlbridge.engines.transport import EngineHttp
from rlbridge.engines.wires import Spoken, body_of
from rlbridge.errors import ContractError, EngineError

Json = dict[str, Any]
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Health:
    """What one look at an engine gave.

    Attributes:
        version: the weights it serves, in its own words; None where it doesn't say.
    """

    version: int | str | None = None


class HttpEngine:
    """One server.

    Args:
        url: its base URL, with or without `/v1`.
        config: how to speak to it; its sources aren't read.
    """

    def __init__(self, url: str, config: PolicyConfig) -> None:
        self.url = check_url(url)
        self._config = config
        self._http = EngineHttp(
            self.url,
            api_key=config.api_key.get_secret_value() if config.api_key else "",
            connect_timeout_s=config.connect_timeout_s,
            call_timeout_s=config.call_timeout_s,
            keepalive_s=config.keepalive_s,
        )
        self._spoken: Spoken | None = None
        self._asking = asyncio.Lock()

    async def info(self) -> EngineInfo:
        """What the server is; waits for it to come up, until `ready_timeout_s`."""
        return (await self._known()).info

    async def ask(self) -> EngineInfo:
        """What the server is, without waiting for it to come up.

        Raises:
            EngineError: nobody answers, or not before the deadline for coming up.
        """
        try:
            async with asyncio.timeout(self._config.ready_timeout_s):
                return (await self._asked()).info
        except TimeoutError as error:
            raise EngineError(
                f"{self.url}: it answers no probe", code="timeout", retryable=True, url=self.url
            ) from error

    async def generate(self, call: EngineCall) -> tuple[Generation, ...]:
        """The answers to one call."""
        spoken = await self._known()
        body = body_of(call, spoken, stream=False)
        reply = await self._http.post(spoken.path, body)
        return await self._read(reply, call, body, spoken)

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """The one answer to one call, in pieces."""
        spoken = await self._known()
        body = body_of(call, spoken, stream=True)
        chunks: list[Json] = []
        async with contextlib.aclosing(self._http.events(spoken.path, body)) as lines:
            async for line in lines:
                for chunk in self._chunks(line, spoken):
                    chunks.append(chunk)
                    delta = _delta(chunk, spoken)
                    if delta is not None:
                        yield delta
        try:
            reply = reply_from_chunks(chunks)
        except ContractError as error:
            raise self._http.bad_reply(spoken.path, str(error)) from error
        (whole,) = await self._read(reply, call, body, spoken)
        yield Delta(done=whole)

    async def health(self) -> Health:
        """Look whether the server is up, and at which weights.

        Raises:
            EngineError: it isn't.
        """
        spoken = self._spoken
        timeout_s = self._config.health_timeout_s
        if spoken is None or spoken.info.wire == "nemo_rl" or not spoken.info.tokens:
            await self._answers(timeout_s)
            return Health()
        await self._http.get("/health", timeout_s=timeout_s)
        if not spoken.tells_version:
            return Health()
        told = await self._http.get("/weight_info", timeout_s=timeout_s)
        return Health(told.get("weight_version"))

    async def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; False where the server has no such route, or is too busy."""
        try:
            told = await self._http.post(
                "/reset_prefix_cache", {}, timeout_s=self._config.health_timeout_s
            )
        except EngineError:
            return False
        return bool(told.get("success", True))

    def use_version(self, version: int | str | None) -> None:
        """Say which weights the server has now, for replies that don't."""
        if self._spoken is not None:
            self._spoken = self._spoken.at_version(version)

    def forget(self) -> None:
        """Ask the server again what it is: another one may have come up in its place."""
        self._spoken = None

    async def aclose(self) -> None:
        """Close the connections; calls in flight fail."""
        await self._http.aclose()

    async def _known(self) -> Spoken:
        """What the server is, once somebody answers HTTP there; one deadline for both."""
        if self._spoken is not None:
            return self._spoken
        trouble = EngineError(f"{self.url}: it answers no probe", url=self.url)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.ready_timeout_s):
                while True:
                    try:
                        return await self._asked()
                    except EngineError as error:
                        trouble = error
                        if not error.retryable:
                            raise
                    await asyncio.sleep(_POLL_S)
        raise EngineError(
            f"{trouble} (waited {self._config.ready_timeout_s:g} s for it to come up)",
            status=trouble.status,
            code="not_ready",
            retryable=True,
            url=self.url,
        ) from trouble

    async def _asked(self) -> Spoken:
        async with self._asking:
            if self._spoken is None:
                await self._answers(self._config.health_timeout_s)
                self._spoken = await probe(self._http, self._config)
            return self._spoken

    async def _answers(self, timeout_s: float) -> None:
        """Whether somebody answers: servers without /health say 404, and are up."""
        try:
            await self._http.get("/health", timeout_s=timeout_s)
        except EngineError as error:
            if error.status not in (401, 403, 404, 405):
                raise

    def _chunks(self, line: bytes, spoken: Spoken) -> list[Json]:
        try:
            return chunks_from_sse([line])
        except ContractError as error:
            raise self._http.stream_error(line, spoken.path, str(error)) from error

    async def _read(
        self, reply: Mapping[str, Any], call: EngineCall, body: Json, spoken: Spoken
    ) -> tuple[Generation, ...]:
        if spoken.info.wire == "generate" and not spoken.text_mode:
            reply = await self._with_text(reply, call, spoken)
        now = self._spoken if self._spoken is not None else spoken
        if now.info.policy_version != spoken.info.policy_version:
            spoken = spoken.at_version(None)  # changed while it sampled: nobody knows which
        try:
            return generations(reply, call=call, body=body, spoken=spoken, replica=self.url)
        except ContractError as error:
            raise self._http.bad_reply(spoken.path, str(error)) from error

    async def _with_text(self, reply: Mapping[str, Any], call: EngineCall, spoken: Spoken) -> Json:
        """A reply of tokens alone with the server's own text of them."""
        stops = call.sampling.get("stop") or ()
        stops = (stops,) if isinstance(stops, str) else stops
        choices = []
        for choice in reply.get("choices") or ():
            ids = choice.get("token_ids") or []
            text = await self._detokenized(ids, spoken)
            if choice.get("finish_reason") == "stop":
                # vLLM 0.27 doesn't tell here which stop it was.
                cuts = [(text.find(stop), stop) for stop in stops if stop in text]
                if cuts:
                    at, stop = min(cuts)
                    text, choice = text[:at], {**choice, "stop_reason": stop}
                else:
                    text = await self._detokenized(ids[:-1], spoken)
            choices.append({**choice, "text": text})
        return {**reply, "choices": choices}

    async def _detokenized(self, ids: list[int], spoken: Spoken) -> str:
        body = {"model": spoken.info.model, "tokens": ids}
        return str((await self._http.post("/detokenize", body)).get("prompt") or "")


_SAID = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls")


def _delta(chunk: Json, spoken: Spoken) -> Delta | None:
    """What a chunk adds for the client; None where that is nothing."""
    for choice in chunk.get("choices") or ():
        given = choice.get("delta")
        if given is None:
            return Delta(text=choice["text"]) if choice.get("text") else None
        said = {name: given[name] for name in _SAID if given.get(name)}
        if not said:
            return None
        if spoken.info.parses or not spoken.info.tokens or said.keys() != {"content"}:
            return Delta(message=said)
        return Delta(text=said["content"])
    return None
