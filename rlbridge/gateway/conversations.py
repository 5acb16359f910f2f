"""From an `Ask` to its captured answers: ask the engine, take up what it says.

Nothing of an answer leaves before it is in the session's history and captures. A failure that
isn't the client's marks the history it happened in, until the same call is answered.
"""

import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from rlbridge.contracts.tokens import Encoding, PromptSpan
from rlbridge.engines.engine import Generation
from rlbridge.gateway.ask import Ask
from rlbridge.gateway.calling import EngineCaller
from rlbridge.gateway.calls import Call
from rlbridge.gateway.capture import CaptureLog
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.exchange import Caller
from rlbridge.gateway.outcome import Answer, Outcome
from rlbridge.gateway.parsing import AnswerReader, chat_delta
from rlbridge.gateway.records import call_record, failed_record
from rlbridge.gateway.replays import Replays
from rlbridge.gateway.sessions import Session
from rlbridge.gateway.store import SessionStore

_CLIENTS_FAULT = range(400, 500)


class Conversations:
    """Asks for answers and takes them up.

    Args:
        caller: the engine.
        reader: parses answers.
        store: the sessions.
        log: where calls are captured; None for nowhere.
        counts: what happened, for metrics.
        model: the name clients know.
        encoding: the tokenizer and template that make prompts.
    """

    def __init__(
        self,
        caller: EngineCaller,
        reader: AnswerReader,
        store: SessionStore,
        log: CaptureLog | None,
        counts: Counter[str],
        model: str,
        encoding: Encoding | None,
    ) -> None:
        self._caller = caller
        self._reader = reader
        self._store = store
        self._log = log
        self._counts = counts
        self._model = model
        self._encoding = encoding
        self.replays = Replays(counts)

    async def answer(self, ask: Ask, caller: Caller) -> Outcome:
        """The answers to a request; those of its first attempt where the client only asks again.

        Raises:
            ApiError: the engine refused, failed, or kept aborting.
        """
        if ask.session.anonymous:  # nobody can ask again in a session without a name
            return await self._ask(ask)
        again = bool(caller.retry or caller.idempotency_key)
        return await self.replays.answer(ask.session, ask.key, again, lambda: self._ask(ask))

    async def stream(
        self, ask: Ask, caller: Caller
    ) -> AsyncGenerator[Mapping[str, Any] | Outcome, None]:
        """Deltas in Chat form (`{"text": ...}` for completions), then the outcome.

        A request for several answers, or one whose answer is there already, has no deltas.

        Raises:
            ApiError: as `answer`; also in the middle.
        """
        again = bool(caller.retry or caller.idempotency_key)
        if ask.call.n > 1 or self.replays.holds(ask.session, ask.key, again):
            yield await self.answer(ask, caller)
            return
        self._begin(ask)
        try:
            async with aclosing(self._deltas(ask)) as deltas:
                async for delta in deltas:
                    if not isinstance(delta, Generation):
                        yield delta
                        continue
                    outcome = await self._take(ask, [delta])
                    self.replays.keep(ask.session, ask.key, outcome)
                    try:
                        yield outcome
                    except GeneratorExit:  # its last chunks were never sent
                        self.replays.lose(ask.session, ask.key)
                        raise
        except ApiError as error:
            self._failed(ask, error)
            raise
        finally:
            ask.session.in_flight -= 1

    async def _deltas(self, ask: Ask) -> AsyncGenerator[Mapping[str, Any] | Generation, None]:
        """What a streamed answer adds piece by piece, in Chat form; then the whole of it."""
        prompt = ask.plan.prompt if ask.plan is not None else None
        parser = None if ask.plain else self._reader.stream(prompt, ask.tools)
        calls = 0
        async with aclosing(self._caller.stream(ask.call)) as deltas:
            async for delta in deltas:
                if delta.message:
                    yield delta.message
                elif delta.text and ask.plain:
                    yield {"text": delta.text}
                elif parser is not None and (delta.text or delta.done):
                    parsed = parser.feed(delta.text) if delta.text else parser.finish()
                    if parsed and (delta.done is None or delta.done.message is None):
                        yield chat_delta(parsed, ask.seed, calls)
                        calls += len(parsed.tool_calls)
                if delta.done is not None:
                    yield delta.done

    async def _ask(self, ask: Ask) -> Outcome:
        self._begin(ask)
        try:
            return await self._take(ask, await self._caller.generate(ask.call))
        except ApiError as error:
            self._failed(ask, error)
            raise
        finally:
            ask.session.in_flight -= 1

    def _begin(self, ask: Ask) -> None:
        ask.session.in_flight += 1
        self._counts["calls"] += 1
        if ask.plan is not None:
            self._counts[f"prompts_{ask.plan.how}"] += 1
            if ask.plan.reason:
                self._counts[f"rendered_{ask.plan.reason}"] += 1

    async def _take(self, ask: Ask, generations: Sequence[Generation]) -> Outcome:
        """Take up what the engine answered; it is captured when this returns."""
        if ask.session.ended:
            raise ApiError(
                f"session {ask.session.name!r} was ended by its client during this call",
                status=410,
                param="session",
                code="session_gone",
            )
        answers = tuple(
            self._take_one(ask, generation, index, len(generations))
            for index, generation in enumerate(generations)
        )
        if self._log is not None:
            await self._log.durable()
        first = generations[0]
        call = answers[0].call
        sent = ask.plan.prompt if ask.plan is not None else None
        prompt = call.prompt() if call is not None else sent
        headers = ask.headers()
        if call is None:
            headers["x-rlbridge-trainable"] = "false"
        else:
            headers["x-rlbridge-call"] = str(call.number)
        return Outcome(
            ask.name,
            self._model,
            int(time.time()),
            answers,
            len(prompt) if prompt is not None else first.prompt_tokens or 0,
            first.cached_tokens,
            sum(answer.call.sampled for answer in answers if answer.call is not None),
            headers,
        )

    def _take_one(self, ask: Ask, generation: Generation, index: int, of: int) -> Answer:
        seed = f"{ask.seed}/{index}" if index else ask.seed
        if ask.plain:
            message: dict[str, Any] = {"role": "assistant", "content": generation.text}
        else:
            prompt = ask.plan.prompt if ask.plan else None
            message = self._reader.message(generation, prompt, ask.tools, seed)
        turn = generation.turn
        if turn is None:
            self._untokened(ask.session)
            return Answer(message, generation.text, generation.finish, generation.stop_reason)
        base, added = self._added(ask, generation)
        call = Call(
            len(ask.session.calls),
            f"{ask.key}/{index}" if of > 1 else ask.key,
            base,
            added,
            turn.generation,
            message,
            seed,
            ask.text + generation.text if ask.plain else "",
            generation.finish,
            generation.stop_reason,
            ask.resolved.params,
            turn.logprobs_mode,
            self._encoding,
        )
        call.keep(turn.prompt)
        self._capture(ask.session, "call", lambda: call_record(call, ask.root, ask.node))
        ask.session.add(call, ask.node)
        self._store.took(ask.session, call)
        self._counts["sampled_tokens"] += call.sampled
        return Answer(message, generation.text, generation.finish, generation.stop_reason, call)

    def _added(self, ask: Ask, generation: Generation) -> tuple[Call | None, PromptSpan]:
        """The call this one goes on from, and the prompt's tokens behind it."""
        assert generation.turn is not None  # noqa: S101 # asked before
        prompt, plan = generation.turn.prompt, ask.plan
        if plan is None or plan.base is None:
            return None, prompt
        if prompt is not plan.prompt and (
            len(prompt) != len(plan.prompt)
            or prompt.token_ids.tobytes() != plan.prompt.token_ids.tobytes()
        ):
            self._counts["prompts_changed_by_engine"] += 1
            return None, prompt
        return plan.base, plan.added

    def _untokened(self, session: Session) -> None:
        session.untokened += 1
        self._counts["untokened"] += 1
        self._capture(session, "untokened", dict)

    def _capture(
        self, session: Session, kind: str, record: Callable[[], Mapping[str, Any]]
    ) -> None:
        if self._log is None:
            return
        try:
            self._store.record(session)
            self._log.append(session.name, kind, record())
        except OSError as error:
            self._counts["capture_errors"] += 1
            raise ApiError(
                f"what the engine answered couldn't be captured, so it isn't given away: {error}",
                status=500,
                code="capture_failed",
            ) from error

    def _failed(self, ask: Ask, error: ApiError) -> None:
        if error.status in _CLIENTS_FAULT or ask.session.ended:
            return
        self._counts["failed_calls"] += 1
        ask.session.failed.add(ask.node.digest)
        if error.code != "capture_failed" and not ask.session.anonymous:
            self._capture(ask.session, "failed", lambda: failed_record(ask.node, str(error)))
