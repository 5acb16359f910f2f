r"""Text with `{name}` places, as `str.format` has them and as NeMo-Skills writes its prompts.

`{{` and `}}` are braces. Refuses everything else of `str.format` (attributes, indexes, formats,
conversions): a prompt is data, and `{problem.__class__}` in it a mistake or an attack. Values go
in as they are; braces in them mean nothing.
"""

from collections.abc import Mapping
from string import Formatter
from typing import Final

from rlbridge.errors import ConfigError

_FORMATTER: Final = Formatter()


class Template:
    """A text with places.

    Attributes:
        source: as written.
        names: of its places, in order of their first use.
        literals: the texts between its places, in order.

    Raises:
        ConfigError: a brace without its fellow, or a place that is no plain name.
    """

    def __init__(self, source: str, *, where: str) -> None:
        self.source = source
        self._parts: list[tuple[str, str | None]] = []
        try:
            for literal, name, spec, conversion in _FORMATTER.parse(source):
                if name is not None and (spec or conversion or not name.isidentifier()):
                    raise ConfigError(
                        f"{where}: {{{name}}} is no place for a field: a place is a name in "
                        "braces; double a brace that is meant to be read ({{ and }})"
                    )
                self._parts.append((literal, name))
        except ValueError as error:
            raise ConfigError(
                f"{where}: {error}; double a brace that is meant to be read ({{{{ and }}}})"
            ) from error
        self.names = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))
        self.literals = tuple(literal for literal, _ in self._parts)

    def render(self, values: Mapping[str, str]) -> str:
        """The text with `values` in its places; every one of `names` must be there."""
        return "".join(
            literal + ("" if name is None else values[name]) for literal, name in self._parts
        )
