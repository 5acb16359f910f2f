"""Chat templates in the styles met in the wild, written here; each with its special tokens.

Not copies of anybody's: they share the shapes that matter (turn ends, headers, what is trimmed,
stripped or re-rendered).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Style:
    """A template and the special tokens it needs.

    Attributes:
        name: of the style.
        template: jinja2 source.
        specials: special tokens; the first is the primary EOS.
        tools: whether it can render tools, tool calls and tool messages.
    """

    name: str
    template: str
    specials: tuple[str, ...]
    tools: bool = False


CHATML = Style(
    "chatml",
    "{% if tools %}{{ '<|im_start|>system\\nTools:\\n' }}{% for t in tools %}{{ t | tojson }}"
    "{{ '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>\\n' + "
    "({'name': c.function.name, 'arguments': c.function.arguments} | tojson) + '\\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    tools=True,
)

# Reasoning is kept only behind the last user message, tool results share one user turn, and the
# content is trimmed of leading newlines.
THINK = Style(
    "think",
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% if tools %}{{ '<|im_start|>system\\n# Tools\\n' }}{% for t in tools %}"
    "{{ t | tojson + '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}"
    "{% endif %}{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% elif m.role == 'assistant' %}"
    "{% set c = m.content or '' %}{% set r = m.reasoning_content or m.reasoning or '' %}"
    "{% if not r and '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1] %}"
    "{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.index0 > ns.last and r %}{{ '<think>\\n' + r.strip('\\n') + '\\n</think>\\n\\n' }}"
    "{% endif %}{{ c.lstrip('\\n') }}"
    "{% for t in m.tool_calls or [] %}{{ '\\n<tool_call>\\n' + "
    "({'name': t.function.name, 'arguments': t.function.arguments} | tojson) + '\\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>",
     "</tool_call>"),
    tools=True,
)  # fmt: skip

HEADERS = Style(
    "headers",
    "{{ '<|begin|>' }}{% for m in messages %}"
    "{{ '<|header|>' + m.role + '<|/header|>\\n\\n' + (m.content or '') | trim }}"
    "{% for c in m.tool_calls or [] %}{{ {'name': c.function.name, 'parameters': "
    "c.function.arguments} | tojson }}{% endfor %}{{ '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\\n\\n' }}{% endif %}",
    ("<|eot|>", "<|begin|>", "<|header|>", "<|/header|>", "<|eom|>"),
    tools=True,
)

MODEL_ROLE = Style(
    "model_role",
    "{{ '<bos>' }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + "
    "(m.content | trim) + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
)

# The tools stand before the *last* user message: they move when another one comes.
INST = Style(
    "inst",
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{{ '<s>' }}{% for m in messages %}"
    "{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == ns.last %}{{ '[TOOLS] ' + (tools | tojson) + '[/TOOLS]' }}"
    "{% endif %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'tool' %}{{ '[RESULT] ' + m.content + '[/RESULT]' }}"
    "{% elif m.role == 'assistant' %}{% if m.tool_calls %}{{ '[CALLS] [' }}"
    "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{{ ']</s>' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}"
    "{% else %}{{ raise_exception('Only user, assistant and tool roles') }}{% endif %}{% endfor %}",
    ("</s>", "<s>", "[INST]", "[/INST]", "[TOOLS]", "[/TOOLS]", "[RESULT]", "[/RESULT]", "[CALLS]"),
    tools=True,
)

# No turn end: the next role's header ends an answer, and is what the model samples last.
ROLE_ENDS = Style(
    "role_ends",
    "{{ '[gMASK]' }}{% for m in messages %}"
    "{{ '<|' + ('observation' if m.role == 'tool' else m.role) + '|>\\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    ("<|user|>", "[gMASK]", "<|assistant|>", "<|system|>", "<|observation|>", "<|endoftext|>"),
    tools=True,
)

# The turn end has a space before it, and the primary EOS never appears.
SPACED = Style(
    "spaced",
    "{% for m in messages %}{{ '### ' + m.role + ': ' + (m.content or '') + ' <|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### assistant:' }}{% endif %}",
    ("<|endoftext|>", "<|end|>"),
)

PLAIN = Style(
    "plain",
    "{% for m in messages %}{{ m.role.capitalize() + ': ' + (m.content or '') + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
    ("<|endoftext|>",),
)

# Not a template anyone should use: the tail depends on how long the history is.
COUNTING = Style(
    "counting",
    "{% for m in messages %}{{ '<|im_start|>' + loop.index|string + ' ' + m.role + '\\n' + "
    "(m.content or '') + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ("<|im_end|>", "<|im_start|>"),
)

STYLES = (CHATML, THINK, HEADERS, MODEL_ROLE, INST, ROLE_ENDS, SPACED, PLAIN)
