"""Values that go into a prompt, as text. Refuses text that went through the prompt before."""

from collections.abc import Sequence
from typing import Any, Final

from rlbridge.errors import ConfigError
from rlbridge.templates import Template

# Shorter texts of a template ("Question:") are in many a row by chance.
TELLING_CHARS: Final = 16


def text_of(value: Any, where: str) -> str:
    """A field as text: text, a number, or a row's options as lines of letter and text.

    Raises:
        ConfigError: it is something else; how it should read is not ours to guess.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        pairs = [(key, text) for part in value for key, text in part.items()]
        if all(isinstance(text, str) for _, text in pairs):
            return "\n".join(f"{key}: {text}" for key, text in pairs)
    raise ConfigError(
        f"{where} is a {type(value).__name__}; a prompt takes text, numbers, and options as "
        '[{"A": "text"}, ...]'
    )


def refuse_rendered(
    value: str, templates: Sequence[Template], examples: Sequence[str], where: str
) -> None:
    """Refuse a field that holds the words of a template around it, or all its examples.

    Raises:
        ConfigError: it does.
    """
    for template in templates:
        telling = [text.strip() for text in template.literals]
        telling = [text for text in telling if len(text) >= TELLING_CHARS]
        if telling and all(text in value for text in telling):
            raise ConfigError(
                f"{where} holds the prompt's own words already ({telling[0][:60]!r}): the row was "
                "prompted before; take the raw field"
            )
    # All of them, for a row may well ask what one of the examples asks.
    telling = [text.strip() for text in examples if text.strip() != value.strip()]
    if any(len(text) >= TELLING_CHARS for text in telling) and all(t in value for t in telling):
        raise ConfigError(
            f"{where} holds the prompt's examples already: the row was prompted before; take the "
            "raw field"
        )
