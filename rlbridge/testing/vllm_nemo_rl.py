"""How NeMo-RL's server reads requests: its asserts, its splice, its two forms of refusal.

Checked against replies of its real server (v0.7.0 and the head of August 2026, on vLLM 0.27.1).
What its asserts and its own ValueErrors say goes to its log; the client gets a bare 500.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from rlbridge.testing.vllm_requests import Json, RefusedError, Requests, error_body


@dataclass(frozen=True, slots=True)
class Exact:
    """The sampling that NeMo-RL's server insists on."""

    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class NemoRlRequests(Requests):
    """Reads requests as NeMo-RL's server does.

    Attributes:
        exact: the sampling; another answers 500.
        message_fields: after v0.7.0; it wants `top_logprobs`, and finds the turn's end anew.
    """

    exact: Exact
    message_fields: bool

    def tokenized(self, body: Json) -> list[int]:
        """The IDs of a `/tokenize` request, spliced too; of any length."""
        self.check_model(body)
        return self._spliced(body) if "messages" in body else self.tokenizer.encode(body["prompt"])

    def prompt(self, wire: str, body: Json) -> list[int]:
        """The IDs that the engine is prompted with."""
        if body.get("messages") is None:
            missing = {"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}
            raise RefusedError(422, {"detail": [{**missing, "input": body}]})
        given = body.get("temperature"), body.get("top_p")
        if body.get("top_k") not in (None, -1) or given != (
            self.exact.temperature, self.exact.top_p
        ):  # fmt: skip
            _broken()
        self.check_model(body)
        if not body["messages"]:
            _broken()
        choice = body.get("tool_choice") or "auto"
        if not self.tool_parser and choice not in ("auto", "none"):
            named = choice if isinstance(choice, str) else choice["function"]["name"]
            message = f'tool_choice="{named}" requires --tool-call-parser to be set'
            raise RefusedError(400, error_body(message, "BadRequestError", None))
        ids = (body.get("kv_transfer_params") or {}).get("prompt_token_ids")
        if ids and self.token_chat:
            return self._with_room(list(ids))
        rendered = self.rendered(body)
        if len(rendered) >= self.max_model_len:
            _refuse(
                f"This model's maximum context length is {self.max_model_len} tokens. However, "
                f"your prompt contains at least {len(rendered)} input tokens."
            )
        return self._with_room(self._spliced(body))

    def check_model(self, body: Json) -> None:
        """Refuses another model's name; none at all is this one's."""
        if body.get("model") not in (None, self.model):
            message = f"The model `{body['model']}` does not exist."
            raise RefusedError(404, error_body(message, "NotFoundError", "model", 404))

    def check(self, prompt: list[int], params: Json, body: Json, wire: str) -> None:
        """Refuses what vLLM does, and cuts `max_tokens` to the room there is."""
        beyond = [token for token in prompt if token >= self.tokenizer.vocab_size]
        if beyond:
            _refuse(f"Token id {beyond[0]} is out of vocabulary", stream=bool(body.get("stream")))
        if params["max_tokens"] < 1:
            _refuse(f"max_tokens must be at least 1, got {params['max_tokens']}.")
        top = body.get("top_logprobs", 0)
        if self.message_fields and body.get("logprobs") and top is None:
            _refuse(
                "`top_logprobs` must be set when requesting token information from the NeMo-RL "
                "chat endpoint."
            )
        params["max_tokens"] = min(params["max_tokens"], self.max_model_len - len(prompt))

    def _with_room(self, prompt: list[int]) -> list[int]:
        if len(prompt) >= self.max_model_len:
            _broken()
        return prompt

    def _spliced(self, body: Json) -> list[int]:
        """The prompt: the model's own tokens in front, the template's behind."""
        template = self.rendered(body)
        messages, known = body["messages"], body.get("required_prefix_token_ids")
        if known is None:
            holder = next((m for m in reversed(messages) if "prompt_token_ids" in m), None)
            known = holder and holder["prompt_token_ids"] + holder["generation_token_ids"]
        if not known:
            return template
        roles = [message["role"] for message in messages]
        last = len(roles) - roles[::-1].index("assistant") if "assistant" in roles else len(roles)
        before = self.tokenizer.apply_chat_template(messages[:last], tools=body.get("tools"))
        at = self._turn_end(before, template)
        eos = self.tokenizer.eos_token_id
        return [*known[: len(known) - (known[-1] == eos)], *template[at:]]

    def _turn_end(self, before: Sequence[int], template: Sequence[int]) -> int:
        """Where in `template` the last assistant message ends, as the server finds it."""
        eos = self.tokenizer.eos_token_id
        ends = [at for at, token in enumerate(template) if token == eos]
        if self.message_fields:
            count = list(before).count(eos)
            if not 0 < count <= len(ends):
                _broken()
            return ends[count - 1]
        ends = [at for at in ends if at < len(before)]
        if len(template) <= len(before) or not ends:
            _broken()
        return ends[-1]


def _broken() -> NoReturn:
    """An assert or an exception nobody catches."""
    raise RefusedError(500, b"Internal Server Error", "text/plain; charset=utf-8")


def _refuse(message: str, *, stream: bool = False) -> NoReturn:
    """An exception of vLLM's, in NeMo-RL's shape; in a stream it is vLLM's own."""
    if stream:
        raise RefusedError(400, error_body(message, "BadRequestError", None), in_stream=True)
    error = {"message": message, "type": "invalid_request_error", "code": 400}
    raise RefusedError(400, {"error": error})
