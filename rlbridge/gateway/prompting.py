"""The prompt of a call, from the session's own tokens wherever that can be proven right.

An answer of ours in the history is gone on from by the bridge, which appends. Where it refuses,
or where the history isn't one we know, the conversation is rendered in full and the plan says
why; tokens a client brings along (`prompt_token_ids` on messages, `required_prefix_token_ids`)
are spliced into that rendering if they speak for the same text. Refuses what a template can't
render, and options that would change a prompt behind the gateway's back.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from rlbridge.contracts.codecs.messages import text_of
from rlbridge.contracts.tokens import PromptSpan, as_token_ids
from rlbridge.errors import ConfigError, ContractError
from rlbridge.gateway.calls import Call
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.given import Given
from rlbridge.gateway.history import Walk
from rlbridge.onpolicy.bridge import Bridge, Bridged
from rlbridge.onpolicy.refusal import Refusal
from rlbridge.onpolicy.splice import splice_turn
from rlbridge.onpolicy.template import TemplateError
from rlbridge.onpolicy.tokenizer import ChatTokenizer, encode

# Encoding this much text takes milliseconds: other sessions shouldn't wait for it.
_LONG_TEXT = 50_000
_BRIDGES = 16
# vLLM's, each of which makes another prompt than the one the session's tokens are of.
_REFUSED: Mapping[str, tuple[object, ...]] = {
    "chat_template": (None,),
    "documents": (None,),
    "continue_final_message": (None, False),
    "add_generation_prompt": (None, True),
    "echo": (None, False),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A prompt, and how it came about.

    Attributes:
        prompt: for the engine.
        base: the call whose tokens begin it; None for none.
        how: `bridged`, `rendered` or `spliced`.
        reason: why it was rendered though an answer of ours is in the history; else empty.
    """

    prompt: PromptSpan
    base: Call | None = None
    how: str = "rendered"
    reason: str = ""

    @property
    def added(self) -> PromptSpan:
        """The prompt behind the base's tokens; all of it without a base."""
        if self.base is None:
            return self.prompt
        return self.prompt.behind(self.base.length)


class Prompter:
    """Makes prompts of one tokenizer.

    Args:
        tokenizer: with a chat template, or none is ever rendered.
        ends: IDs that end an answer besides the tokenizer's EOS.
        options: for the template, at every rendering.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, *, ends: Sequence[int] = (), options: Mapping[str, Any]
    ) -> None:
        self.tokenizer = tokenizer
        self._ends = tuple(ends)
        self._options = dict(options)
        self._bridges: dict[bytes, Bridge] = {}

    def bridge(self, options: Mapping[str, Any] | None = None) -> Bridge:
        """The bridge for these template options; proven once.

        Raises:
            ApiError: there is no chat template, or it refuses the options.
        """
        merged = {**self._options, **(options or {})}
        key = orjson.dumps(merged, option=orjson.OPT_SORT_KEYS) if merged else b""
        bridge = self._bridges.get(key)
        if bridge is None:
            if getattr(self.tokenizer, "chat_template", None) is None:
                raise ApiError(
                    "the model's tokenizer has no chat template; use /v1/completions", param="model"
                )
            try:
                bridge = Bridge(self.tokenizer, ends=self._ends, **merged)
            except (ConfigError, TypeError) as error:
                raise ApiError(str(error), param="chat_template_kwargs") from error
            if len(self._bridges) >= _BRIDGES:
                self._bridges.pop(next(iter(self._bridges)))
            self._bridges[key] = bridge
        return bridge

    async def plan(
        self,
        walk: Walk,
        messages: Sequence[Mapping[str, Any]],
        *,
        given: Given | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Plan:
        """The prompt for a conversation.

        Args:
            walk: its messages, looked up in the session's history.
            messages: all of them, without token fields.
            given: tokens the client brought.
            tools: in Chat form.
            options: the request's `chat_template_kwargs`.

        Raises:
            ApiError: the template can't render it.
        """
        bridge = self.bridge(options)
        tools = as_vllm_renders(tools)
        reason = ""
        anchor = walk.anchor.call if walk.anchor is not None else None
        if given is not None and not (
            anchor is not None and given.index == walk.after - 1 and given.are_of(anchor)
        ):
            return await self._spliced(bridge, given, messages, tools)
        if anchor is not None:
            news = _named(messages[walk.after :], messages[walk.after - 1])
            done = bridge.next_prompt(anchor.turn(), news, tools=tools)
            if isinstance(done, Bridged):
                return Plan(done.prompt, anchor, "bridged")
            reason = done.reason.value
        elif any(message.get("role") == "assistant" for message in messages):
            reason = "unknown_history"
        return Plan(PromptSpan(await self._render(bridge, messages, tools)), None, reason=reason)

    async def _spliced(
        self,
        bridge: Bridge,
        given: Given,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> Plan:
        rendered = await self._render(bridge, messages, tools)
        turn_end = bridge.template.turn_end
        ends = {*self._ends, *(encode(self.tokenizer, turn_end) if turn_end else ())}
        if self.tokenizer.eos_token_id is not None:
            ends.add(self.tokenizer.eos_token_id)
        spliced = splice_turn(given.turn(), rendered, self.tokenizer, ends=ends)
        if isinstance(spliced, Refusal):
            return Plan(PromptSpan(rendered), None, reason=spliced.reason.value)
        return Plan(spliced[0], None, "spliced")

    async def _render(
        self,
        bridge: Bridge,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> Any:
        """IDs of the whole conversation."""
        try:
            text = bridge.template.render(for_template(messages), tools=tools)
        except TemplateError as error:
            raise ApiError(str(error), param="messages") from error
        except ContractError as error:
            raise ApiError(str(error), param="messages") from error
        ids = await self.encode(text)
        if not ids:
            raise ApiError("the conversation renders to no token", param="messages")
        return as_token_ids(ids)

    async def encode(self, text: str) -> list[int]:
        """IDs of a text; a long one in a thread."""
        if len(text) > _LONG_TEXT:
            return await asyncio.to_thread(encode, self.tokenizer, text)
        return encode(self.tokenizer, text)


def refuse_prompt_options(body: Mapping[str, Any]) -> None:
    """Refuse vLLM's options that would make another prompt than ours."""
    for name, harmless in _REFUSED.items():
        if name in body and not any(body[name] is value for value in harmless):
            raise ApiError(
                f"{name} isn't supported: the gateway makes prompts itself, from the session's "
                "own tokens",
                param=name,
            )


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as chat templates expect them.

    Text instead of parts, tool arguments as objects, reasoning under both of its names, and the
    name of the tool on what it answered.

    Raises:
        ContractError: a part that is no text.
    """
    done = []
    names: dict[str, str] = {}
    for message in messages:
        plain: dict[str, Any] = {**message, "content": text_of(message.get("content"))}
        if message.get("role") == "assistant":
            thought = message.get("reasoning") or message.get("reasoning_content")
            if thought:
                plain["reasoning"] = plain["reasoning_content"] = thought
            if message.get("tool_calls"):
                plain["tool_calls"] = [_as_object(call) for call in message["tool_calls"]]
                names.update(_call_names(message))
            else:
                plain.pop("tool_calls", None)
        elif message.get("role") == "tool" and not message.get("name"):
            name = names.get(str(message.get("tool_call_id")))
            if name:
                plain["name"] = name
        done.append(plain)
    return done


def _named(news: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """New messages for the bridge: text contents, and the names of the tools that answered."""
    names = _call_names(answer)
    done: list[Mapping[str, Any]] = []
    for message in news:
        content = message.get("content")
        if not isinstance(content, str):
            try:
                message = {**message, "content": text_of(content)}
            except ContractError as error:
                raise ApiError(str(error), param="messages") from error
        if names and message.get("role") == "tool" and not message.get("name"):
            name = names.get(str(message.get("tool_call_id")))
            if name:
                message = {**message, "name": name}
        done.append(message)
    return done


def as_vllm_renders(
    tools: Sequence[Mapping[str, Any]] | None,
) -> Sequence[Mapping[str, Any]] | None:
    """Tools as vLLM hands them to a template (0.27): its own order of keys and no others.

    A template prints tools as JSON, so another order is another prompt than the policy sees
    behind a plain vLLM.
    """
    if tools is None:
        return None
    done: list[Mapping[str, Any]] = []
    for tool in tools:
        function = tool.get("function")
        if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
            done.append(tool)
            continue
        known = {name: function.get(name) for name in ("name", "description", "parameters")}
        if function.get("strict") is not None:
            known["strict"] = function["strict"]
        done.append({"type": "function", "function": known})
    return done


def _call_names(message: Mapping[str, Any]) -> dict[str, str]:
    return {
        str(call.get("id")): str((call.get("function") or {}).get("name"))
        for call in message.get("tool_calls") or ()
    }


def _as_object(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            value = orjson.loads(arguments) if arguments.strip() else {}
        except ValueError:
            value = arguments  # what the model wrote is no JSON: the template shows it as it is
        function["arguments"] = value
    return {**call, "function": function}
