"""What the gateway, the collectors and the adapters ask of an inference engine.

An engine takes one call and gives one `Generation` for each answer asked for. It never retries
what it can't repeat exactly, never invents a token, and says of each failure whether the same
call may be sent again.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlbridge.contracts.rollout import FinishReason, Turn
from rlbridge.contracts.tokens import PromptSpan


@dataclass(frozen=True, slots=True)
class ChatContext:
    """The conversation behind a prompt, for engines that parse, or that take nothing but text.

    Attributes:
        messages: in Chat form, token fields left out.
        tools: in Chat form.
        tool_choice: as the client sent it.
        extra: other fields of the client's request that an engine may honour
            (`response_format`, `chat_template_kwargs`, `parallel_tool_calls`, ...).
    """

    messages: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineCall:
    """One call to a policy.

    Attributes:
        prompt: exact IDs to go on from; None only where the engine takes text alone.
        sampling: parameters in the words of `rlbridge.contracts.wire.SAMPLING_PARAMS`, already
            resolved between client and trainer; sent as they are, defaults left to the engine.
        n: how many answers.
        session: calls of one session go to one replica while it is well (its prefix cache).
        chat: what the prompt was rendered from; None for plain completions.
        cache_salt: keeps prefix caches of different policies or tenants apart; empty for none.
    """

    prompt: PromptSpan | None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    n: int = 1
    session: str = ""
    chat: ChatContext | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer.

    Attributes:
        turn: the call as the engine saw it, with the prompt it was really given; None where the
            engine gives no tokens. Such an answer is never trained.
        text: what was sampled, as text, special tokens left out.
        message: the assistant message as the engine's own parsers read it (`content`,
            `reasoning`, `tool_calls`); None where the engine parses nothing: parse `text`.
        finish: why the engine stopped; an ABORT never comes without being said here.
        stop_reason: the stop token's ID or the stop string; None for the primary EOS.
        prompt_tokens: how many tokens the engine counted in the prompt; None if it didn't say.
        cached_tokens: how many of them its prefix cache held; None if it didn't say.
        replica: which engine answered, for people.
        policy_version: the weights that answered, in the engine's words; None if it didn't say.
            A turn whose weights changed in the middle says more in its spans.
    """

    turn: Turn | None
    text: str
    message: Mapping[str, Any] | None = None
    finish: FinishReason = FinishReason.UNKNOWN
    stop_reason: int | str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    replica: str = ""
    policy_version: int | str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer.

    Attributes:
        text: sampled text that is certain by now; may be empty.
        message: the engine's own parsed delta (`content`, `reasoning`, `tool_calls` with their
            indexes), where it parses; `text` is then empty.
        done: the whole answer, on the last piece of it, and there alone.
    """

    text: str = ""
    message: Mapping[str, Any] | None = None
    done: Generation | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is, found by asking it once.

    Attributes:
        model: the name it serves, to be sent in requests.
        wire: how it is spoken to, for people and metrics (`token_chat`, `generate`,
            `completions`, `nemo_rl`, `text`, or an adapter's own word).
        tokens: whether it takes and gives exact tokens.
        parses: whether it parses tool calls and reasoning of answers to token prompts.
        max_model_len: its context in tokens; None if it didn't say.
        policy_version: the weights it serves now, in its own words; None if it didn't say.
    """

    model: str
    wire: str
    tokens: bool
    parses: bool = False
    max_model_len: int | None = None
    policy_version: int | str | None = None


class Engine(Protocol):
    """An inference engine, or several that serve one policy.

    Every method may raise `EngineError`. Cancelling a call ends it upstream too, but for a whole
    reply of NeMo-RL's server, whose route doesn't look whether its client is still there.
    """

    async def info(self) -> EngineInfo:
        """What the engine is; waits for it to come up, within its own deadline."""
        ...

    async def generate(self, call: EngineCall) -> Sequence[Generation]:
        """The `call.n` answers to one call."""
        ...

    def stream(self, call: EngineCall) -> AsyncIterator[Delta]:
        """The one answer to a call with `n=1`, in pieces as it is sampled."""
        ...

    async def aclose(self) -> None:
        """Give back connections; calls in flight fail."""
        ...
