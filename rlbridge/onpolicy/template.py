"""What a chat template writes after an assistant's turn, and the proof that it always does.

The bridge appends to sampled tokens what the template would have put there: the turn end, new
messages, the next header. That is right only if this tail does not depend on what went before.
Nobody can prove it of a Turing-complete template, so it is tried on dummies: every role, after
histories with each feature (system prompt, tools, tool calls, reasoning, length). A role that
fails once is refused ever after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlbridge.errors import ConfigError
from rlbridge.onpolicy.tokenizer import ChatTokenizer, Message, Tools, encode, special_ids

# Dummies stand for text: they must survive trimming, casing and escaping in any template.
QUESTION = "Qx7question"
ANSWER = "Zq7answer"
NEWS = "Nx7news"
THOUGHT = "Tx7thought"
# Stand for what a tool message doesn't say; a template that writes them needs to be told.
_UNNAMED = "Fx7function"
_UNIDENTIFIED = "Cx7call00"
DUMMY_TOOLS: Tools = (
    {
        "type": "function",
        "function": {
            "name": "lookup",
            "description": "Look something up.",
            "parameters": {
                "type": "object",
                "properties": {"key": {"type": "string"}},
                "required": ["key"],
            },
        },
    },
)
_USER = {"role": "user", "content": QUESTION}
_ASSISTANT = {"role": "assistant", "content": ANSWER}
# Ends in the same dummy as the plain one, so that the same place can be found after rendering.
_CALLING = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "lookup", "arguments": {"key": ANSWER}},
        }
    ],
}
_TOOL_RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "lookup", "content": NEWS}
_THINKING = _ASSISTANT | {"reasoning_content": THOUGHT, "reasoning": THOUGHT}

Messages = Sequence[Message]

HISTORIES: dict[str, Messages] = {
    "plain": (_USER, _ASSISTANT),
    "long": (_USER, _ASSISTANT, _USER, _ASSISTANT, _USER, _ASSISTANT),
    "system": ({"role": "system", "content": "Be brief."}, _USER, _ASSISTANT),
    "thinking": (_USER, _THINKING, _USER, _THINKING),
    "tool_calls": (_USER, _CALLING, _TOOL_RESULT, _ASSISTANT),
    "calls_last": (_USER, _CALLING),
    "tools": (_USER, _ASSISTANT),
}
NEW_MESSAGES: dict[str, Messages] = {
    "user": ({"role": "user", "content": NEWS},),
    "tool": (_TOOL_RESULT,),
    "tools_in_a_row": (_TOOL_RESULT, _TOOL_RESULT | {"content": NEWS + "2"}),
    "tool_then_user": (_TOOL_RESULT, {"role": "user", "content": NEWS}),
    "system": ({"role": "system", "content": NEWS},),
}


class TemplateError(ConfigError):
    """The template can't render what it was given."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one history did to the tail after it.

    Attributes:
        role: which new messages (a key of `NEW_MESSAGES`).
        feature: which history (a key of `HISTORIES`).
        renders: the template takes this conversation at all.
        tail_stable: the tail is the same as after the shortest history: the bridge is right.
        prefix_preserved: the rendering begins with the previous rendering and the answer: even
            rendering anew keeps the text.
        detail: what differed, or the template's own error.
    """

    role: str
    feature: str
    renders: bool
    tail_stable: bool
    prefix_preserved: bool
    detail: str = ""


class ChatTemplate:
    """A tokenizer's chat template, with its options fixed.

    Args:
        tokenizer: with `apply_chat_template`.
        **options: passed to the template at every rendering (`enable_thinking`, ...).
    """

    def __init__(self, tokenizer: ChatTokenizer, **options: Any) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.specials = special_ids(tokenizer)
        self.turn_end = self._turn_end()

    def render(
        self, messages: Messages, *, tools: Tools | None = None, generation_prompt: bool = True
    ) -> str:
        """The text of a conversation.

        Raises:
            TemplateError: the template refuses it; the message is the template's own.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **self.options,
            )
        # Templates raise whatever they like: jinja2's errors, TypeError, KeyError, ValueError.
        except Exception as error:
            raise TemplateError(f"the chat template refuses the conversation: {error}") from error
        return str(text)

    def tail(self, new_messages: Messages, *, tools: Tools | None = None) -> str:
        """What the template writes after an assistant's last character.

        The turn end (where the template has one), the new messages and the generation prompt;
        cost proportional to the new messages (and the tools, if given).

        Raises:
            TemplateError: the template refuses the messages or drops the dummy turn before them.
        """
        called = [m for m in new_messages if m.get("role") == "tool"] if self.turn_end else []
        text = self.render([_USER, _calling(called), *new_messages], tools=tools) if called else ""
        at = -1
        for _ in called:  # one dummy answer for each call
            at = text.find(ANSWER, at + 1)
        if at >= 0:
            # After a call the turn end stands behind brackets that the model writes itself.
            start = text.find(self.turn_end, at)
            if start < 0:
                raise TemplateError(f"no {self.turn_end} closes a turn that called a tool")
            _refuse_stand_ins(text[start:])
            return text[start:]
        text = self.render([_USER, _ASSISTANT, *new_messages], tools=tools)
        at = text.find(ANSWER)
        if at < 0:
            raise TemplateError("the chat template drops the assistant's text")
        return text[at + len(ANSWER) :]

    def _turn_end(self) -> str:
        """The special token that closes an assistant's turn; empty if there is none."""
        text = self.render([_USER, _ASSISTANT], generation_prompt=False)
        after = text[text.rfind(ANSWER) + len(ANSWER) :]
        for token in encode(self.tokenizer, after):
            if token in self.specials:
                middle = self.render([_USER, _ASSISTANT, _USER])
                found = self.specials[token] in middle[middle.find(ANSWER) :]
                return self.specials[token] if found else ""
        return ""


def prove(template: ChatTemplate) -> list[Check]:
    """Try every role after every history.

    Returns:
        One `Check` for each pair; see `roles_refused` for what follows from them.
    """
    return [_check(template, role, feature) for role in NEW_MESSAGES for feature in HISTORIES]


def roles_refused(checks: Sequence[Check]) -> dict[str, str]:
    """The kinds of new messages the bridge must not append, and why."""
    refused: dict[str, str] = {}
    for role in NEW_MESSAGES:
        mine = [check for check in checks if check.role == role]
        if not any(check.renders for check in mine):
            refused[role] = f"the template can't render it: {mine[0].detail}"
        for check in mine:
            if check.renders and not check.tail_stable:
                refused.setdefault(role, f"after a history with {check.feature}: {check.detail}")
    return refused


def kind_of(new_messages: Messages) -> str:
    """Which key of `NEW_MESSAGES` stands for these messages; empty if none does."""
    roles = [str(message.get("role")) for message in new_messages]
    kinds = {"developer": "system"}
    roles = [kinds.get(role, role) for role in roles]
    if set(roles) == {"tool"}:
        return "tool" if len(roles) == 1 else "tools_in_a_row"
    if "tool" in roles and set(roles) <= {"tool", "user"}:
        return "tool_then_user"
    return roles[-1] if len(set(roles)) == 1 and roles[-1] in NEW_MESSAGES else ""


def _check(template: ChatTemplate, role: str, feature: str) -> Check:
    history, news = HISTORIES[feature], NEW_MESSAGES[role]
    tools = DUMMY_TOOLS if feature in {"tools", "tool_calls", "calls_last"} else None
    if role in {"tool", "tools_in_a_row", "tool_then_user"}:
        history = [*history[:-1], _calling(news)]
    try:
        full = template.render([*history, *news], tools=tools)
        before = template.render(history[:-1], tools=tools)
        whole = template.render(history, tools=tools, generation_prompt=False)
    except TemplateError as error:
        return Check(role, feature, False, False, False, str(error))
    try:
        tail = template.tail(news, tools=tools)
    except TemplateError as error:
        return Check(role, feature, True, False, False, str(error))
    # A tail that begins too late ends alike but lacks the first of the new messages.
    stable = full.endswith(tail) and tail.count(NEWS) == len(news)
    preserved = full.startswith(before) and full.startswith(whole.rstrip())
    return Check(
        role,
        feature,
        renders=True,
        tail_stable=stable,
        prefix_preserved=preserved,
        detail="" if stable and preserved else _difference(full, before, whole, tail, stable),
    )


def _difference(full: str, before: str, whole: str, tail: str, stable: bool) -> str:
    if not stable:
        return f"the answer is followed by {full[-len(tail) :]!r}, not by {tail!r}"
    old = whole if full.startswith(before) else before
    at = next((i for i, (a, b) in enumerate(zip(full, old, strict=False)) if a != b), len(full))
    return f"{old[at : at + 40]!r} became {full[at : at + 40]!r} when messages followed"


def _refuse_stand_ins(tail: str) -> None:
    for stand_in, field in ((_UNNAMED, "name"), (_UNIDENTIFIED, "tool_call_id")):
        if stand_in in tail:
            raise TemplateError(
                f"the template writes the {field} of the call a tool message answers; "
                f"give the message its {field}"
            )


def _calling(results: Messages) -> dict[str, Any]:
    """An assistant message that called what these tool messages answer."""
    answered = [result for result in results if result.get("role") == "tool"]
    calls = [
        {
            "id": result.get("tool_call_id") or _UNIDENTIFIED,
            "type": "function",
            "function": {"name": result.get("name") or _UNNAMED, "arguments": {"key": ANSWER}},
        }
        for result in answered
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}
