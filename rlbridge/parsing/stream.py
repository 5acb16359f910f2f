"""Reasoning, content and tool calls out of sampled text, whole or in pieces, with one result.

Text is held back while it may be the beginning of a mark, and a tool call until it is complete.
What looked like a call and is none stays content, with the reason. White space beside marks is
the template's, not the model's message, and is left out.
"""

from collections.abc import Sequence
from typing import Any

from rlbridge.parsing.cursor import Cursor, Malformed, NeedMore
from rlbridge.parsing.message import ParsedDelta, ParsedMessage, ToolCall, parameter_schemas
from rlbridge.parsing.style import FORMATS, REASONING_MARKS, Style


def parse(
    text: str,
    style: Style,
    *,
    opened: bool = False,
    tools: Sequence[Any] | None = None,
) -> ParsedMessage:
    """What an answer says.

    Args:
        text: as sampled, without the turn end; with special tokens where `style.marks` are such.
        style: see `detect`.
        opened: the prompt ended inside the reasoning (`opens_reasoning`).
        tools: in Chat form; their schemas tell numbers from strings in XML formats.
    """
    parser = StreamParser(style, opened=opened, tools=tools)
    parser.feed(text)
    parser.finish()
    return parser.message


class StreamParser:
    """Parses an answer as it comes.

    Args:
        style: see `detect`.
        opened: the prompt ended inside the reasoning.
        tools: in Chat form.
    """

    def __init__(
        self, style: Style, *, opened: bool = False, tools: Sequence[Any] | None = None
    ) -> None:
        self._form = FORMATS[style.tools]
        self._marks = REASONING_MARKS.get(style.reasoning)
        self._schemas = parameter_schemas(tools)
        self._buffer = ""
        self._held = ""  # white space and glue that a mark would make meaningless
        self._thinking = self._after_mark = opened and self._marks is not None
        self._may_think = self._marks is not None and not opened
        self._block: Cursor | None = None
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[ToolCall] = []
        self._problems: list[str] = []
        self._thought = self._thinking

    @property
    def message(self) -> ParsedMessage:
        """All that was parsed so far."""
        return ParsedMessage(
            "".join(self._reasoning) if self._thought else None,
            "".join(self._content) or None,
            tuple(self._calls),
            tuple(self._problems),
            not self._thinking,
        )

    def feed(self, text: str) -> ParsedDelta:
        """Take the next piece; returns what is certain by now."""
        self._buffer += text
        return self._run(final=False)

    def finish(self) -> ParsedDelta:
        """Say that the answer ends here; returns what was held back."""
        return self._run(final=True)

    def _run(self, *, final: bool) -> ParsedDelta:
        before = len(self._reasoning), len(self._content), len(self._calls)
        while self._step(final=final):
            pass
        if final:
            self._flush()
        return ParsedDelta(
            "".join(self._reasoning[before[0] :]),
            "".join(self._content[before[1] :]),
            tuple(self._calls[before[2] :]),
        )

    def _step(self, *, final: bool) -> bool:
        """Do one thing; False when only more text can help."""
        if self._may_think:
            return self._begin(final=final)
        if self._thinking:
            return self._think(final=final)
        if self._block is not None:
            return self._read_block(self._block, final=final)
        return self._speak(final=final)

    def _begin(self, *, final: bool) -> bool:
        """Whether the answer begins with reasoning."""
        assert self._marks is not None  # noqa: S101 # `_may_think` says so
        opening = self._marks[0]
        text = self._buffer.lstrip()
        if text.startswith(opening):
            self._buffer = text[len(opening) :]
            self._thinking = self._thought = self._after_mark = True
        elif not final and opening.startswith(text):
            return False
        self._may_think = False
        return True

    def _think(self, *, final: bool) -> bool:
        assert self._marks is not None  # noqa: S101 # nobody thinks without marks
        closing = self._marks[1]
        end = self._buffer.find(closing)
        if end >= 0:
            self._emit(self._buffer[:end], self._reasoning)
            self._buffer = self._buffer[end + len(closing) :]
            self._held, self._thinking, self._after_mark = "", False, True
            return True
        self._emit(self._take(self._certain((closing,), final=final)), self._reasoning)
        return False

    def _speak(self, *, final: bool) -> bool:
        form = self._form
        if form is None:
            self._emit(self._take(len(self._buffer)), self._content)
            return False
        if form.first and not self._content and not self._held.strip():
            blank = len(self._buffer) - len(self._buffer.lstrip())
            if self._buffer.startswith(form.first, blank):
                self._emit(self._take(blank), self._content)
                self._block = Cursor()
                return True
        marks = form.openers + form.glue
        found = [(at, mark) for mark in marks if (at := self._buffer.find(mark)) >= 0]
        if not found:
            self._emit(self._take(self._certain(marks, final=final)), self._content)
            return False
        at, mark = min(found, key=lambda pair: (pair[0], -len(pair[1])))
        self._emit(self._take(at), self._content)
        if mark in form.glue:
            glue = self._take(len(mark))
            self._held += "" if self._after_mark else glue
        else:
            self._block = Cursor()
        return True

    def _read_block(self, block: Cursor, *, final: bool) -> bool:
        assert self._form is not None  # noqa: S101 # a block is of a form
        block.rewind(self._buffer, final=final)
        try:
            calls = self._form.read(block, self._schemas)
        except NeedMore:
            return False
        except Malformed as why:
            opener = self._opener()
            if str(why):
                self._problems.append(f"a call that begins with {opener} is content: {why}")
            self._emit(self._take(len(opener)), self._content)
        else:
            self._calls.extend(calls)
            self._take(block.at)
            self._held, self._after_mark = "", True
        self._block = None
        return True

    def _opener(self) -> str:
        """The mark that the block in the buffer starts with."""
        form = self._form
        assert form is not None  # noqa: S101 # a block is of a form
        return next(mark for mark in form.openers + form.first if self._buffer.startswith(mark))

    def _certain(self, marks: Sequence[str], *, final: bool) -> int:
        """How much of the buffer can't be the beginning of a mark."""
        if final:
            return len(self._buffer)
        longest = max(map(len, marks)) - 1
        for start in range(max(0, len(self._buffer) - longest), len(self._buffer)):
            if any(mark.startswith(self._buffer[start:]) for mark in marks):
                return start
        return len(self._buffer)

    def _take(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _emit(self, text: str, parts: list[str]) -> None:
        """Append text; white space waits for what follows it, and goes after a mark."""
        if self._after_mark:
            text = text.lstrip()
            if not text:
                return
            self._after_mark = False
            if parts and self._calls:
                parts.append("\n")  # content before and after a call
        bare = text.rstrip()
        if bare:
            parts.append(self._held + bare)
            self._held = text[len(bare) :]
        else:
            self._held += text

    def _flush(self) -> None:
        """Keep what was held back: nothing came that made it meaningless."""
        parts = self._reasoning if self._thinking else self._content
        if self._held and (parts or self._thinking or not (self._calls or self._thought)):
            parts.append(self._held)
        self._held = ""
