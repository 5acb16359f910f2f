"""A policy's tool calls, answered in the rollout's own session. Never scores, never guesses.

What a tool or a call does wrong is an observation: the policy reads it and may mend it. What
makes the session's state unknown (its server gone, its cookie lost) raises, because no reward of
that session could be trusted. A policy writes the tool's name, so the name is checked before it
becomes a route: calling "verify" must not ask the verifier.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import orjson

from rlbridge.contracts.wire import ROUTE_AGGREGATE, ROUTE_SEED, ROUTE_VERIFY
from rlbridge.errors import GymConnectionError, GymError, GymReplyError, GymStatusError
from rlbridge.gym.session import GymSession

_RESERVED: Final = frozenset(
    route.removeprefix("/") for route in (ROUTE_SEED, ROUTE_VERIFY, ROUTE_AGGREGATE)
)
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")


async def answer_calls(
    session: GymSession,
    tool_calls: Sequence[Mapping[str, Any]],
    *,
    max_output_chars: int = 8192,
    parallel: bool = False,
    tools: Collection[str] | None = None,
    failures: Counter[str] | None = None,
) -> list[dict[str, Any]]:
    """Answer a turn's tool calls with Chat "tool" messages, in the order of the calls.

    Args:
        session: a seeded session; its `tool_timeout_s` bounds each call.
        tool_calls: in Chat form; `arguments` is a JSON string or an object.
        max_output_chars: a longer answer is cut, and says so.
        parallel: send the calls at once. In turn otherwise, for calls that build on each other.
        tools: the names the policy was offered; others are answered as unknown, unasked. None
            leaves it to the server.
        failures: counts what went wrong by class (`unknown_tool`, `bad_arguments`, `refused`,
            `server_error`, `timeout`, `malformed_answer`, `truncated`).

    Returns:
        One message a call: `role`, `tool_call_id`, `name`, `content`. A failed call's content is
        a JSON object with `error`.

    Raises:
        GymError: the session was lost or nobody answers; its reward can't be trusted.
    """
    noted = Counter[str]() if failures is None else failures

    async def answer(call: Mapping[str, Any]) -> dict[str, Any]:
        name, arguments = _function(call)
        text = await _answer(session, name, arguments, tools, noted)
        if len(text) > max_output_chars:
            noted["truncated"] += 1
            cut = f"\n[cut: {max_output_chars} of {len(text)} characters shown]"
            text = text[:max_output_chars] + cut
        return {
            "role": "tool",
            "tool_call_id": str(call.get("id") or ""),
            "name": name,
            "content": text,
        }

    if not parallel:
        return [await answer(call) for call in tool_calls]
    # Wait for all, even when one raises: none may still change the session afterwards.
    answers = await asyncio.gather(*map(answer, tool_calls), return_exceptions=True)
    for one in answers:
        if isinstance(one, BaseException):
            raise one
    return [one for one in answers if not isinstance(one, BaseException)]


def _function(call: Mapping[str, Any]) -> tuple[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        return "", None
    return str(function.get("name") or ""), function.get("arguments")


async def _answer(
    session: GymSession,
    name: str,
    arguments: Any,
    tools: Collection[str] | None,
    failures: Counter[str],
) -> str:
    offered = tools is None or name in tools
    if not offered or name in _RESERVED or not _NAME.fullmatch(name):
        failures["unknown_tool"] += 1
        return _error(f"there is no tool named {name[:128]!r}")
    parsed = _parsed(arguments)
    if isinstance(parsed, str):
        failures["bad_arguments"] += 1
        return _error(f"the arguments of {name} are not a JSON object: {parsed}")
    try:
        result = await session.call_tool(name, parsed)
    except GymError as error:
        if session.lost or isinstance(error, GymConnectionError):
            raise
        kind, words = _told(name, error)
        failures[kind] += 1
        return _error(words)
    return orjson.dumps(result).decode()


def _parsed(arguments: Any) -> dict[str, Any] | str:
    """The arguments as an object (none at all is an empty one), or why they aren't one."""
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments) if arguments.strip() else {}
        except orjson.JSONDecodeError as error:
            return str(error)
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        return f"got {type(arguments).__name__}"
    return dict(arguments)


def _told(name: str, error: GymError) -> tuple[str, str]:
    """A failed call's class, and what the policy is told: the server's words, never its URL."""
    if isinstance(error, GymStatusError):
        if error.status in (404, 405):
            return "unknown_tool", f"there is no tool named {name!r}"
        return ("server_error" if error.status >= 500 else "refused"), error.detail
    if isinstance(error, GymReplyError):
        return "malformed_answer", f"{name} gave no readable answer"
    return "timeout", f"{name} gave no answer in time"


def _error(words: str) -> str:
    return orjson.dumps({"error": words}).decode()
