"""Which weights are the current ones. Compares what engines say of theirs; guesses no order."""

from collections.abc import Iterable

Version = int | str | None
# vLLM's name for weights whose version nobody has set.
UNSET = "default"


class Versions:
    """The order of weights' versions.

    Numbers, also as text, are ordered as numbers; other words by when they were first seen.

    Attributes:
        published: what the trainer says is current; None where it doesn't.
    """

    def __init__(self) -> None:
        self.published: Version = None
        self._seen: dict[str, int] = {}

    def current(self, live: Iterable[Version]) -> Version:
        """The version that replicas must serve, given those that the live ones do."""
        if self.published is not None:
            return self.published
        known = [version for version in live if version is not None]
        for version in known:
            self._seen.setdefault(str(version), len(self._seen))
        return max(known, key=self._order, default=None)

    def _order(self, version: int | str) -> tuple[int, int]:
        text = str(version)
        if text.isascii() and text.isdigit():
            return 1, int(text)
        return 0, -1 if text == UNSET else self._seen[text]


def is_current(version: Version, current: Version) -> bool:
    """Whether a replica may answer; one that doesn't tell its version may."""
    return version is None or current is None or str(version) == str(current)
