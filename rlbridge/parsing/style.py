"""Which marks a model writes its reasoning and tool calls with. Detected from its chat template.

A template without a known mark gives a style that finds nothing: text then is content.
"""

from dataclasses import dataclass
from enum import StrEnum

from rlbridge.parsing import formats
from rlbridge.parsing.formats import Format


class ToolStyle(StrEnum):
    """How tool calls are written."""

    NONE = "none"
    HERMES = "hermes"
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen2.5, Qwen3."""
    QWEN_XML = "qwen_xml"
    """`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`:
    Qwen3-Coder, Qwen3.5, Nemotron 3."""
    GLM = "glm"
    """`<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`."""
    LLAMA = "llama"
    """`{"name": ..., "parameters": {...}}`, maybe after `<|python_tag|>`; several with `;`."""
    MISTRAL = "mistral"
    """`[TOOL_CALLS][{...}]`, or `[TOOL_CALLS]name[ARGS]{...}` once a call."""
    DEEPSEEK = "deepseek"
    """`<｜tool▁call▁begin｜>...<｜tool▁sep｜>...`, of V3 and R1 and of V3.1."""
    KIMI = "kimi"
    """`<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}`."""
    PYTHONIC = "pythonic"
    """`[name(key="value"), ...]`: Llama 3.2 and 4, ToolACE."""


FORMATS: dict[ToolStyle, Format | None] = {
    ToolStyle.NONE: None,
    ToolStyle.HERMES: formats.HERMES,
    ToolStyle.QWEN_XML: formats.QWEN_XML,
    ToolStyle.GLM: formats.GLM,
    ToolStyle.LLAMA: formats.LLAMA,
    ToolStyle.MISTRAL: formats.MISTRAL,
    ToolStyle.DEEPSEEK: formats.DEEPSEEK,
    ToolStyle.KIMI: formats.KIMI,
    ToolStyle.PYTHONIC: formats.PYTHONIC,
}


class ReasoningStyle(StrEnum):
    """How reasoning is written; always before everything else."""

    NONE = "none"
    THINK = "think"
    """`<think>...</think>`; the opening mark is often in the prompt."""
    MISTRAL = "mistral"
    """`[THINK]...[/THINK]`."""
    SEED = "seed"
    """`<seed:think>...</seed:think>`."""


REASONING_MARKS: dict[ReasoningStyle, tuple[str, str]] = {
    ReasoningStyle.THINK: ("<think>", "</think>"),
    ReasoningStyle.MISTRAL: ("[THINK]", "[/THINK]"),
    ReasoningStyle.SEED: ("<seed:think>", "</seed:think>"),
}


@dataclass(frozen=True, slots=True)
class Style:
    """How a model writes.

    Attributes:
        tools: how tool calls are written.
        reasoning: how reasoning is.
    """

    tools: ToolStyle = ToolStyle.NONE
    reasoning: ReasoningStyle = ReasoningStyle.NONE

    @property
    def marks(self) -> tuple[str, ...]:
        """All marks; where one is a special token, text must be decoded with special tokens."""
        form = FORMATS[self.tools]
        return REASONING_MARKS.get(self.reasoning, ()) + (
            form.openers + form.glue if form is not None else ()
        )


# The first whose marks are all in the template wins, so the particular ones come first.
_TOOL_MARKS: tuple[tuple[ToolStyle, tuple[str, ...]], ...] = (
    (ToolStyle.DEEPSEEK, ("<｜tool▁call▁begin｜>",)),
    (ToolStyle.KIMI, ("<|tool_call_begin|>",)),
    (ToolStyle.MISTRAL, ("[TOOL_CALLS]",)),
    (ToolStyle.GLM, ("<tool_call>", "<arg_key>")),
    (ToolStyle.QWEN_XML, ("<function=", "<parameter=")),
    (ToolStyle.HERMES, ("<tool_call>",)),
    (ToolStyle.PYTHONIC, ("<|python_start|>",)),
    (ToolStyle.PYTHONIC, ("[func_name1(",)),
    (ToolStyle.LLAMA, ("<|python_tag|>",)),
    (ToolStyle.LLAMA, ("<|start_header_id|>", '"parameters": ')),
)
_REASONING_MARKS: tuple[tuple[ReasoningStyle, str], ...] = (
    (ReasoningStyle.SEED, "</seed:think>"),
    (ReasoningStyle.MISTRAL, "[THINK]"),
    (ReasoningStyle.THINK, "</think>"),
    (ReasoningStyle.THINK, "<think>"),
)


def detect(chat_template: str) -> Style:
    """The style of the models that a chat template is for.

    Args:
        chat_template: jinja2 source, of the template used when there are tools.
    """
    tools = next(
        (
            style
            for style, marks in _TOOL_MARKS
            if all(mark in chat_template for mark in marks)
        ),
        ToolStyle.NONE,
    )  # fmt: skip
    reasoning = next(
        (style for style, mark in _REASONING_MARKS if mark in chat_template), ReasoningStyle.NONE
    )
    return Style(tools, reasoning)


def opens_reasoning(prompt: str, style: Style) -> bool:
    """Whether a prompt ends inside the reasoning, so that the answer goes on with it.

    Args:
        prompt: its text with special tokens; the part after the last message will do.
        style: of the model.
    """
    marks = REASONING_MARKS.get(style.reasoning)
    return marks is not None and prompt.rstrip().endswith(marks[0])
