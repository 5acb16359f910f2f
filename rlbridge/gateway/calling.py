"""Calls to the engine: an aborted answer is asked for again, and never handed on as an answer."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace

from rlbridge.contracts.rollout import FinishReason
from rlbridge.engines.engine import Delta, Engine, EngineCall, Generation
from rlbridge.errors import EngineError
from rlbridge.gateway.config import GatewayConfig
from rlbridge.gateway.errors import ApiError, from_engine


class EngineCaller:
    """Asks an engine, within the attempts the config allows.

    Args:
        engine: whom to ask.
        config: `abort_attempts` and `abort_wait_s`.
        counts: `aborted` and `engine_errors` are counted here.
    """

    def __init__(self, engine: Engine, config: GatewayConfig, counts: Counter[str]) -> None:
        self._engine = engine
        self._config = config
        self._counts = counts

    async def generate(self, call: EngineCall) -> list[Generation]:
        """The answers to a call, none of them aborted.

        Raises:
            ApiError: the engine refused or failed, or aborted too often.
        """
        whole: list[Generation] = []
        for attempt in range(self._config.abort_attempts):
            try:
                answers = await self._engine.generate(replace(call, n=call.n - len(whole))
                                                      if whole else call)  # fmt: skip
            except EngineError as error:
                self._counts["engine_errors"] += 1
                raise from_engine(error) from error
            whole += [answer for answer in answers if answer.finish is not FinishReason.ABORT]
            if len(whole) >= call.n:
                return whole[: call.n]
            await self._aborted(attempt)
        raise self._gave_up()

    async def stream(self, call: EngineCall) -> AsyncGenerator[Delta, None]:
        """The one answer to a call in pieces; aborted before its first piece, it is asked again.

        Raises:
            ApiError: as `generate`; also where an answer is aborted after a piece was handed on.
        """
        for attempt in range(self._config.abort_attempts):
            handed_on = False
            deltas = self._engine.stream(call)
            try:
                async for delta in deltas:
                    done = delta.done
                    if done is not None and done.finish is FinishReason.ABORT:
                        break
                    handed_on = handed_on or bool(delta.text or delta.message)
                    yield delta
                    if done is not None:
                        return
                else:
                    raise ApiError("the engine's stream ended without an answer", status=502)
            except EngineError as error:
                self._counts["engine_errors"] += 1
                raise from_engine(error) from error
            finally:
                if isinstance(deltas, AsyncGenerator):  # ends an aborted or abandoned call upstream
                    await deltas.aclose()
            if handed_on:
                self._counts["aborted"] += 1
                break
            await self._aborted(attempt)
        raise self._gave_up()

    async def _aborted(self, attempt: int) -> None:
        self._counts["aborted"] += 1
        if attempt + 1 < self._config.abort_attempts:
            await asyncio.sleep(self._config.abort_wait_s * 2**attempt)

    def _gave_up(self) -> ApiError:
        return ApiError(
            f"the engine aborted this call (asked at most {self._config.abort_attempts} times); "
            "it may be pausing for a weight update: ask again",
            status=503,
            code="aborted",
            retry_after_s=1.0,
        )
