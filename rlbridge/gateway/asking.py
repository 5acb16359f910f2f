"""From a request's body to an `Ask`: its place in a session's history, its prompt, its sampling.

Refuses what the openai package's types refuse.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from rlbridge.contracts.tokens import PromptSpan, Provenance, as_token_ids
from rlbridge.engines.engine import EngineInfo
from rlbridge.errors import ContractError
from rlbridge.gateway.ask import Ask, engine_call, request_key
from rlbridge.gateway.calls import Call
from rlbridge.gateway.config import GatewayConfig
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.exchange import Caller
from rlbridge.gateway.history import lean
from rlbridge.gateway.openai_types import (
    check_messages,
    check_new_messages,
    check_objects,
    check_request,
    check_tools,
)
from rlbridge.gateway.places import Place, Places
from rlbridge.gateway.prompting import Plan, Prompter, refuse_prompt_options
from rlbridge.gateway.sampling import Resolved, resolve
from rlbridge.gateway.sessions import Session

_LOOKED_AT = 8


class Asker:
    """Makes asks of requests.

    Args:
        prompter: makes prompts.
        places: where conversations belong.
        config: of the gateway.
        info: what the engine is.
        model: the name clients know.
    """

    def __init__(
        self,
        prompter: Prompter,
        places: Places,
        config: GatewayConfig,
        info: EngineInfo,
        model: str,
    ) -> None:
        self._prompter = prompter
        self._places = places
        self._config = config
        self._info = info
        self._model = model

    async def chat(self, body: Mapping[str, Any], caller: Caller) -> Ask:
        """The ask of a body of `/v1/chat/completions`.

        Raises:
            ApiError: what is wrong with it.
        """
        check_request("chat", body)
        self.check_model(body)
        _refuse_alternatives(body)
        check_messages(body.get("messages"))
        if not self._info.tokens:
            return await self._text(body, caller)
        refuse_prompt_options(body)
        place = await self._places.find(body, caller)
        session, root, messages = place.session, place.root, place.messages
        tools = root.tools
        plan = await self._plan(place)
        node = place.walk.take(messages, root.trail)
        resolved = self._resolved(body, plan.prompt)
        return Ask(
            session,
            root,
            node,
            plan,
            resolved,
            engine_call(session, plan, resolved, body, messages=messages, tools=tools),
            request_key(node, body, caller.idempotency_key),
            None if body.get("tool_choice") == "none" else tools,
        )

    async def completion(
        self, body: Mapping[str, Any], prompt: str | Sequence[int], caller: Caller
    ) -> Ask:
        """The ask of one prompt of a body of `/v1/completions`, which is checked already.

        Raises:
            ApiError: what is wrong with it.
        """
        if not self._info.tokens:
            raise ApiError(
                "the engine behind this gateway takes messages only; use /v1/chat/completions",
                param="prompt",
            )
        session = await self._places.session(caller, body)
        plan = await self._completion_plan(session, prompt)
        root = session.root(None, None)
        resolved = self._resolved(body, plan.prompt)
        text = prompt if isinstance(prompt, str) else ""
        key = f"{zlib.crc32(plan.prompt.token_ids.tobytes()):08x}"
        return Ask(
            session,
            root,
            root.node,
            plan,
            resolved,
            engine_call(session, plan, resolved, body),
            f"{key}-{request_key(root.node, body, caller.idempotency_key)}",
            text=text,
            plain=True,
        )

    async def prompt_of(self, body: Mapping[str, Any], caller: Caller) -> PromptSpan:
        """What the engine would be sent for these messages, now.

        Raises:
            ApiError: what is wrong with them.
        """
        check_messages(body.get("messages"))
        return (await self._plan(await self._places.find(body, caller))).prompt

    def check_model(self, body: Mapping[str, Any]) -> None:
        """Refuse a model that isn't served here.

        Raises:
            ApiError: 404, as OpenAI and vLLM answer.
        """
        model = body.get("model")
        if model and model != self._model:
            raise ApiError(
                f"The model `{model}` does not exist; this gateway serves `{self._model}`.",
                status=404,
                param="model",
                code="model_not_found",
            )

    async def _plan(self, place: Place) -> Plan:
        check_new_messages(place.messages, place.walk.known)
        return await self._prompter.plan(
            place.walk,
            place.messages,
            given=place.given,
            tools=place.root.tools,
            options=place.root.options,
        )

    async def _completion_plan(self, session: Session, prompt: str | Sequence[int]) -> Plan:
        """The prompt of a completion: exact where it goes on from a call of the session."""
        recent = session.calls[: -_LOOKED_AT - 1 : -1]
        if isinstance(prompt, str):
            begun = [call for call in recent if call.text and prompt.startswith(call.text)]
            base = max(begun, key=lambda call: len(call.text), default=None)
            ids = await self._prompter.encode(prompt[len(base.text) if base else 0 :])
            if base is None:
                return Plan(_prompt(ids))
            return Plan(_extended(base, ids), base, "bridged")
        whole = _prompt(prompt)
        for call in recent:
            if call.length < len(whole):
                known = call.turn().token_ids
                if np.array_equal(whole.token_ids[: len(known)], known):
                    return Plan(_extended(call, whole.token_ids[len(known) :]), call, "bridged")
        return Plan(whole)

    async def _text(self, body: Mapping[str, Any], caller: Caller) -> Ask:
        """The ask of an engine that takes text alone."""
        messages = lean(check_objects(body["messages"]))
        check_new_messages(messages, 0)
        tools = check_tools(body.get("tools"))
        session = await self._places.session(caller, body)
        root = session.root(tools, None)
        resolved = resolve(body, self._config.sampling, prompt_tokens=0, max_model_len=None)
        key = zlib.crc32(orjson.dumps(messages))
        return Ask(
            session,
            root,
            root.node,
            None,
            resolved,
            engine_call(session, None, resolved, body, messages=messages, tools=tools),
            f"{key:08x}-{request_key(root.node, body, caller.idempotency_key)}",
            None if body.get("tool_choice") == "none" else tools,
        )

    def _resolved(self, body: Mapping[str, Any], prompt: PromptSpan) -> Resolved:
        return resolve(
            body,
            self._config.sampling,
            prompt_tokens=len(prompt),
            max_model_len=self._info.max_model_len,
        )


def _prompt(ids: Sequence[int]) -> PromptSpan:
    try:
        span = PromptSpan(as_token_ids(ids))
    except ContractError as error:
        raise ApiError(str(error), param="prompt") from error
    if len(span) == 0:
        raise ApiError("the prompt is empty", param="prompt")
    return span


def _extended(call: Call, ids: Any) -> PromptSpan:
    """A call's tokens and what a client put behind them."""
    added = as_token_ids(ids)
    codes = np.full(len(added), Provenance.BRIDGE, dtype=np.uint8)
    return PromptSpan.joined([call.prompt(), *call.generation, PromptSpan(added, codes)])


def _refuse_alternatives(body: Mapping[str, Any]) -> None:
    """Engines here report the sampled token's logprob alone."""
    if body.get("top_logprobs"):
        raise ApiError(
            "top_logprobs above 0 isn't supported: the gateway keeps the logprob of the sampled "
            "token alone",
            param="top_logprobs",
        )
