"""Reads sampled text that may still grow. Decides nothing that later text could change.

A reader walks from marker to marker. Where the text ends too early it raises `NeedMore`, and the
same walk is done again when there is more; where no further text can help it raises `Malformed`.
So a text cut into pieces is read exactly as the whole.
"""

import json
import re
from typing import Any, NoReturn

_JSON_MARK = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
_PYTHON_MARK = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[\[\](){}'\"]", re.DOTALL)
_MEMBER_SPACE = " \t\n\r"


class NeedMore(Exception):  # noqa: N818 # a step of the walk, not an error
    """The text ends before the question is settled."""


class Malformed(Exception):  # noqa: N818 # the text is then content, which is no error
    """The text is no tool call. The reason is empty where it never tried to be one."""


class Cursor:
    """A position in a text that starts with a marker.

    Attributes:
        at: index of the next character.
    """

    def __init__(self) -> None:
        self._text = ""
        self._final = False
        self.at = 0
        self._extents: dict[int, _JsonExtent] = {}

    def rewind(self, text: str, *, final: bool) -> None:
        """Start again on a text that begins as the last one did."""
        self._text, self._final, self.at = text, final, 0

    def skip_space(self) -> None:
        """Go to the next character that is no white space."""
        while self.at < len(self._text) and self._text[self.at].isspace():
            self.at += 1

    def starts(self, literal: str) -> bool:
        """Whether `literal` comes next; goes behind it if so."""
        if self._text.startswith(literal, self.at):
            self.at += len(literal)
            return True
        if not self._final and literal.startswith(self._text[self.at :]):
            raise NeedMore
        return False

    def expect(self, literal: str, reason: str) -> None:
        """Go behind `literal`; `Malformed` with the reason where something else comes."""
        if not self.starts(literal):
            raise Malformed(reason)

    def close(self, literal: str, reason: str) -> None:
        """As `expect`, but the end of the whole text will do: stop strings cut closing marks."""
        if self._final and literal.startswith(self._text[self.at :]):
            self.at = len(self._text)
            return
        self.expect(literal, reason)

    def ended(self) -> bool:
        """Whether the whole text ends here."""
        if self.at < len(self._text):
            return False
        if not self._final:
            raise NeedMore
        return True

    def peek(self) -> str:
        """The next character; empty at the end of the whole text."""
        return "" if self.ended() else self._text[self.at]

    def until(self, literal: str, reason: str, *, limit: int | None = None) -> str:
        """The text before `literal`, of `limit` characters at most; goes behind it."""
        stop = None if limit is None else self.at + limit + len(literal)
        found = self._text.find(literal, self.at, stop)
        if found < 0:
            if self._final or (stop is not None and len(self._text) >= stop):
                raise Malformed(reason)
            raise NeedMore
        text = self._text[self.at : found]
        self.at = found + len(literal)
        return text

    def json_source(self, opening: str = "{") -> str:
        """The JSON object or array that comes next, as written; only its brackets are checked."""
        if self.peek() != opening:
            raise Malformed("no JSON follows")
        extent = self._extents.setdefault(self.at, _JsonExtent(self.at))
        end = extent.end(self._text)
        if end is None:
            if self._final:
                raise Malformed("its JSON is not closed")
            raise NeedMore
        source = self._text[self.at : end]
        self.at = end
        return source

    def python_source(self) -> str:
        """The Python list that comes next, as written; only its brackets are checked."""
        depth = 0
        for match in _PYTHON_MARK.finditer(self._text, self.at):
            mark = match.group()
            if mark in "([{":
                depth += 1
            elif mark in ")]}":
                depth -= 1
                if depth == 0:
                    source = self._text[self.at : match.end()]
                    self.at = match.end()
                    return source
            elif len(mark) == 1:
                break  # a string that is still open
        if self._final:
            raise Malformed("its Python is not closed")
        raise NeedMore

    def word(self, letters: str, *, limit: int = 128) -> str:
        """The longest run of characters of the class `letters`; `Malformed` beyond `limit`."""
        match = re.compile(f"[{letters}]*").match(self._text, self.at)
        word = match.group() if match else ""
        if len(word) > limit:
            raise Malformed(f"its name is longer than {limit} characters")
        self.at += len(word)
        self.ended()
        return word


class _JsonExtent:
    """Where a JSON value ends, found without reading any character twice."""

    def __init__(self, start: int) -> None:
        self._at = start
        self._depth = 0
        self._quoted = False
        self._end: int | None = None

    def end(self, text: str) -> int | None:
        """The index behind it; None while it is open."""
        if self._end is not None:
            return self._end
        for match in _JSON_MARK.finditer(text, self._at):
            mark = match.group()
            if mark == '"':
                self._quoted = not self._quoted
            elif not self._quoted and mark in "{[":
                self._depth += 1
            elif not self._quoted and mark in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._end = match.end()
                    return self._end
            self._at = match.end()
        # A backslash at the end waits for the character it escapes.
        self._at = max(self._at, len(text) - text.endswith("\\"))
        return None


def load_json(source: str) -> Any:
    """The value; `Malformed` with the reason where `source` is no JSON (NaN isn't)."""
    try:
        return json.loads(source, parse_constant=_no_constant)
    except RecursionError:
        raise Malformed("its JSON is nested too deep") from None
    except ValueError as error:
        raise Malformed(f"its JSON can't be read: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def json_members(source: str) -> dict[str, str]:
    """The members of a valid JSON object, each value as written."""
    decoder, at, members = json.JSONDecoder(), _behind_space(source, 1), {}
    while source[at] != "}":
        key, at = decoder.raw_decode(source, at)
        at = _behind_space(source, _behind_space(source, at) + 1)
        _, end = decoder.raw_decode(source, at)
        members[key] = source[at:end]
        at = _behind_space(source, end)
        if source[at] == ",":
            at = _behind_space(source, at + 1)
    return members


def json_elements(source: str) -> list[str]:
    """The elements of a valid JSON array, each as written."""
    decoder, at, elements = json.JSONDecoder(), _behind_space(source, 1), []
    while source[at] != "]":
        _, end = decoder.raw_decode(source, at)
        elements.append(source[at:end])
        at = _behind_space(source, end)
        if source[at] == ",":
            at = _behind_space(source, at + 1)
    return elements


def _behind_space(source: str, at: int) -> int:
    while source[at] in _MEMBER_SPACE:
        at += 1
    return at
