"""One rollout as the page draws it: messages in order, and the tokens of each model call.

Where a row doesn't say where its tokens came from, that is read off the calls: what a prompt has
in common with the call before was prompted or sampled there, what follows it was appended by the
bridge, and what differs from it has drifted. Refuses nothing: what can't be read is shown as JSON.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import orjson

from rlbridge.contracts import wire
from rlbridge.contracts.codecs.files import rollout_from_json
from rlbridge.contracts.codecs.gym import turn_from_item
from rlbridge.contracts.rollout import Turn
from rlbridge.contracts.tokens import ByteArray, Provenance
from rlbridge.errors import ContractError
from rlbridge.onpolicy.drift import diagnose, first_difference
from rlbridge.onpolicy.tokenizer import Tokenizer, decode
from rlbridge.transforms.conversation import output_of
from rlbridge.transforms.reading import Row
from rlbridge.transforms.rejects import BadRowError

# Shown of a prompt before its news, so that one sees what they follow.
_CONTEXT: Final = 12
_SHOWN_APART: Final = frozenset(
    {wire.RESPONSES_CREATE_PARAMS, wire.RESPONSE, "output", "turns", *wire.TOKEN_FIELDS}
)
_MAX_TOKENS: Final = 20_000


def document(row: Row, tokenizer: Tokenizer | None, ends: frozenset[int]) -> dict[str, Any]:
    """What the page needs of one row.

    Args:
        row: of any form.
        tokenizer: of the policy; None shows IDs.
        ends: IDs that end a turn; for the kind of a drift.
    """
    params = row.get(wire.RESPONSES_CREATE_PARAMS)
    given = params.get("input") if isinstance(params, Mapping) else None
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    try:
        output = output_of(row)
    except BadRowError:
        output = []
    tokens = _Tokens(tokenizer, ends)
    said = [_item(item, {}) for item in given] if isinstance(given, list) else []
    if isinstance(params, Mapping) and params.get("instructions"):
        said.insert(0, _said("system", "instructions", str(params["instructions"])))
    answered = [_item(item, tokens.call(item)) for item in output]
    return {
        "prompt": said,
        "output": answered,
        "calls_own": _own_format(row, tokens),
        "tools": params.get("tools") or [] if isinstance(params, Mapping) else [],
        "fields": {key: value for key, value in row.items() if key not in _SHOWN_APART},
        "text": tokenizer is not None,
    }


def _item(item: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """One message, call or result: who, what kind, which text, and the tokens of its call."""
    if not isinstance(item, Mapping):
        return _said("unknown", "no item", _json(item))
    kind = item.get("type") or "message"
    if kind == "function_call":
        said = _said("call", str(item.get("name")), _text(item.get("arguments")))
    elif kind == "function_call_output":
        said = _said("tool", "result", _text(item.get("output")))
    elif kind == "reasoning":
        said = _said("reasoning", "reasoning", _text(item.get("summary") or item.get("content")))
    else:
        said = _said(str(item.get("role") or "assistant"), str(kind), _text(item.get("content")))
        for tool_call in item.get("tool_calls") or ():
            said["text"] += "\n" + _json(tool_call)
    return {**said, **call}


def _said(role: str, title: str, text: str) -> dict[str, Any]:
    return {"role": role, "title": title, "text": text}


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            str(part["text"]) if isinstance(part, Mapping) and "text" in part else _json(part)
            for part in content
        )
    return "" if content is None else _json(content)


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode()


def _own_format(row: Row, tokens: "_Tokens") -> list[dict[str, Any]]:
    """The calls of a row in rlbridge's own format, which has tokens and no items."""
    if "turns" not in row:
        return []
    try:
        return [tokens.turn(turn) for turn in rollout_from_json(row).turns]
    except (ContractError, KeyError, TypeError) as error:
        return [{"problem": str(error)}]


class _Tokens:
    """Draws the tokens of one rollout's calls, each beside the one before."""

    def __init__(self, tokenizer: Tokenizer | None, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._before: Turn | None = None
        self._origin: ByteArray = np.empty(0, dtype=np.uint8)
        self._texts: dict[int, str] = {}

    def call(self, item: Any) -> dict[str, Any]:
        """The tokens on an output item; nothing where it has none."""
        if not isinstance(item, Mapping):
            return {}
        try:
            turn = turn_from_item(item)
        except ContractError as error:
            return {"problem": str(error)}
        return {} if turn is None else self.turn(turn)

    def turn(self, turn: Turn) -> dict[str, Any]:
        """One call: what is new in its prompt, and what was sampled."""
        prompt = turn.prompt.token_ids
        origin, drift, shared = self._origins(turn)
        start = max(0, shared - _CONTEXT) if self._before is not None else 0
        ids = np.concatenate([prompt[start:], turn.sampled_ids])[:_MAX_TOKENS].tolist()
        codes = np.concatenate([origin, _codes(turn)])
        before = len(prompt) - start
        logprobs = [None if value != value else round(value, 4) for value in turn.logprobs.tolist()]
        trainable = turn.trainable.tolist()
        self._before, self._origin = turn, codes
        return {
            "tokens": {
                "ids": ids,
                "texts": [self._shown(token) for token in ids],
                "origin": codes[start:][:_MAX_TOKENS].tolist(),
                "skipped": start,
                "sampled_from": before,
                "logprobs": logprobs[: max(0, len(ids) - before)],
                "trained": trainable[: max(0, len(ids) - before)],
                "cut": len(prompt) - start + len(turn.sampled_ids) - len(ids),
                "drift": drift,
            }
        }

    def _origins(self, turn: Turn) -> tuple[ByteArray, dict[str, Any] | None, int]:
        """Where each prompt token came from, the drift if there is one, and what is shared."""
        prompt = turn.prompt.token_ids
        if self._before is None or turn.prompt.provenance.any():
            return turn.prompt.provenance, None, 0
        known = self._before.token_ids
        shared = first_difference(known, prompt)
        origin = np.full(len(prompt), Provenance.PROMPT, dtype=np.uint8)
        origin[:shared] = self._origin[:shared]
        if shared == len(known):
            origin[shared:] = Provenance.BRIDGE
            return origin, None, shared
        return origin, self._drift(known, prompt, shared), shared

    def _drift(self, known: Any, prompt: Any, at: int) -> dict[str, Any]:
        told: dict[str, Any] = {"at": at, "kind": "not a continuation of the call before"}
        if self._tokenizer is not None:
            found = diagnose(known, prompt, self._tokenizer, ends=self._ends)
            if found is not None:
                told |= {
                    "kind": found.kind.value,
                    "known": found.known_text[:200],
                    "rendered": found.rendered_text[:200],
                }
        return told

    def _shown(self, token: int) -> str:
        if self._tokenizer is None:
            return str(token)
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = decode(self._tokenizer, [token])
        return text


def _codes(turn: Turn) -> ByteArray:
    return np.concatenate([span.provenance for span in turn.generation])
