"""What a chat template keeps of a conversation, what it breaks, and the mend.

Two questions per role and feature: does a new rendering begin with the old one (else every turn
drifts for those who render), and is the tail always the same (else even the bridge must refuse).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rlbridge.onpolicy.template import (
    ANSWER,
    NEWS,
    QUESTION,
    ChatTemplate,
    Check,
    TemplateError,
    prove,
)
from rlbridge.onpolicy.tokenizer import encode

_BRIDGE = "send token IDs made by the bridge instead of rendering the history"
_MENDS = {
    "thinking": "keep reasoning in the history (a template option such as "
    f"preserve_thinking), or {_BRIDGE}",
    "tools": f"write the tools once, in the first message, or {_BRIDGE}",
    "tool_calls": f"write arguments as the model does (tojson, no escapes), or {_BRIDGE}",
    "calls_last": f"write arguments as the model does (tojson, no escapes), or {_BRIDGE}",
}
_CONTENTS = {
    "plain text": ANSWER,
    "leading newlines": "\n\n" + ANSWER,
    "spaces around": f" {ANSWER} \n",
    "reasoning in the text": f"<think>\nhm\n</think>\n\n{ANSWER}",
    "beyond ASCII": f"{ANSWER} ü 日本 🙂",
    "no text": "",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing tried.

    Attributes:
        role: of the message that was tried.
        feature: what was tried.
        renders: the template takes it; if not, nothing else was found out.
        text_kept: a new rendering begins with the old one, as text.
        tokens_kept: as tokens, for canonically encoded text; None where it was not tried.
        bridge: the bridge can append after it; None where it was not tried.
        detail: what happened.
        mend: what to do about it; empty if nothing is broken.
    """

    role: str
    feature: str
    renders: bool
    text_kept: bool
    tokens_kept: bool | None = None
    bridge: bool | None = None
    detail: str = ""
    mend: str = ""

    @property
    def fine(self) -> bool:
        """Whether nothing is broken."""
        return self.text_kept and self.tokens_kept is not False and self.bridge is not False


def lint(template: ChatTemplate) -> list[Finding]:
    """Try every role after every history, and every kind of content in an answer."""
    found = [_of_check(check) for check in prove(template)]
    return found + [_content(template, name, text) for name, text in _CONTENTS.items()]


def _of_check(check: Check) -> Finding:
    mend = ""
    if check.renders and not check.tail_stable:
        mend = (
            "the bridge refuses this role; make what follows an answer independent of the history"
        )
    elif check.renders and not check.prefix_preserved:
        mend = _MENDS.get(check.feature, _BRIDGE)
    return Finding(
        check.role,
        check.feature,
        check.renders,
        check.prefix_preserved,
        bridge=check.tail_stable if check.renders else None,
        detail=check.detail,
        mend=mend,
    )


def _content(template: ChatTemplate, name: str, content: str) -> Finding:
    history = [{"role": "user", "content": QUESTION}]
    talk = [*history, {"role": "assistant", "content": content}, {"role": "user", "content": NEWS}]
    try:
        before, full = template.render(history), template.render(talk)
    except TemplateError as error:
        return Finding("assistant", name, renders=False, text_kept=False, detail=str(error))
    kept = full.startswith(before + content)
    prompt = encode(template.tokenizer, before)
    known = prompt + encode(template.tokenizer, content)
    whole = encode(template.tokenizer, full)
    tokens = whole[: len(known)] == known
    detail, mend = "", ""
    if not kept:
        detail = f"{content!r} became {full[len(before) : len(before) + len(content) + 8]!r}"
        mend = f"write the content as it is, without trim or split, or {_BRIDGE}"
    elif not tokens:
        where = "the prompt's last token" if whole[: len(prompt)] != prompt else "the answer"
        detail = f"same text, but {where} is encoded differently in the history"
        mend = f"end the generation prompt in a special token, or {_BRIDGE}"
    return Finding("assistant", name, True, kept, tokens, detail=detail, mend=mend)


def worst(findings: Sequence[Finding]) -> str:
    """One line: fine, drifts when rendered anew, or can't be bridged everywhere."""
    if any(finding.bridge is False for finding in findings):
        return "some roles can't be bridged"
    if all(finding.fine for finding in findings if finding.renders):
        return "the template keeps what was said"
    return "rendering anew drifts; the bridge does not"
