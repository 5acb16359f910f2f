"""Tool calls in an answer, and the text that puts their results before the policy.

NeMo-RL encodes an observation as it is, without the chat template, behind the sampled tokens. So
the template's own text is handed over: what it writes between an assistant's turn end (sampled
already) and the next one's first token. Refuses templates whose tail depends on the history.
"""

from collections.abc import Sequence
from typing import Any

from rlbridge.errors import ConfigError
from rlbridge.onpolicy.template import ChatTemplate, kind_of, prove, roles_refused
from rlbridge.onpolicy.tokenizer import ChatTokenizer
from rlbridge.parsing.message import ParsedMessage
from rlbridge.parsing.stream import parse
from rlbridge.parsing.style import Style, ToolStyle, detect

Message = dict[str, Any]


class Dialogue:
    """How one model and template speak with tools.

    Args:
        tokenizer: the policy's.

    Raises:
        ConfigError: the template knows no tool calls, its marks never reach an environment, or
            its tail depends on what went before.
    """

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._template = ChatTemplate(tokenizer)
        self._style = _style(tokenizer)
        self._refused = roles_refused(prove(self._template))

    def parse(self, text: str, tools: Sequence[Message]) -> ParsedMessage:
        """What an answer says.

        Args:
            text: as NeMo-RL decodes it, without special tokens.
            tools: the tools the policy was offered, in Chat form.
        """
        return parse(text, self._style, tools=list(tools))

    def observation(self, results: Sequence[Message], tools: Sequence[Message]) -> str:
        """The text behind a turn that ended: tool results and the next turn's header.

        Args:
            results: Chat messages of role `tool`.
            tools: as offered; templates may write them again.

        Raises:
            ConfigError: this template's tail can't be known without the history.
        """
        kind = kind_of(results)
        if kind in self._refused or not kind:
            raise ConfigError(
                f"the chat template can't take {kind or 'these messages'} behind sampled tokens: "
                f"{self._refused.get(kind, 'roles that follow each other in no known way')}"
            )
        tail = self._template.tail(results, tools=list(tools))
        return tail.removeprefix(self._template.turn_end)


def _style(tokenizer: ChatTokenizer) -> Style:
    source: Any = getattr(tokenizer, "chat_template", None) or ""
    if isinstance(source, dict):
        source = source.get("tool_use") or source.get("default") or ""
    style = detect(source)
    if style.tools is ToolStyle.NONE:
        raise ConfigError("rows have tools, but the policy's chat template knows no tool calls")
    # Added tokens that aren't special (Qwen's <tool_call>) stay in the text.
    lost = sorted(set(style.marks) & set(getattr(tokenizer, "all_special_tokens", ())))
    if lost:
        raise ConfigError(
            f"{', '.join(lost)} are special tokens of this tokenizer, and NeMo-RL decodes answers "
            "without special tokens: an environment can't see this model's tool calls; use "
            "NeMo-RL's Gym path (examples/nemo_rl/gym_agent.yaml)"
        )
    return style
