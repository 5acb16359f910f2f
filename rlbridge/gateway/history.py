"""What a session's engine has been told, as a tree of messages. Never follows an edited history.

A node is a message; an answer of ours is a node with its `Call`. A request is matched from the
root: equal JSON at C speed where the client sends what it sent before, by meaning
(`rlbridge.gateway.canonical`) elsewhere. What isn't found becomes a branch.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from rlbridge.gateway.calls import Call
from rlbridge.gateway.canonical import Said, key_of, said, without_tokens

_DIGEST_BYTES = 8


class Node:
    """A message in its place.

    Attributes:
        parent: the message before it; None at the root.
        digest: names the place: equal for equal histories, in another process too.
        message: as the client last sent it; what we answered, until it does.
        call: the call that answered this; None for messages of others.
    """

    __slots__ = ("_last", "_said", "answers", "call", "children", "digest", "message", "parent")

    def __init__(
        self,
        parent: "Node | None",
        digest: bytes,
        message: Mapping[str, Any],
        call: Call | None = None,
    ) -> None:
        self.parent = parent
        self.digest = digest
        self.message = message
        self.call = call
        self.children: dict[Hashable, Node] = {}
        self.answers: list[Node] = []
        self._last: Node | None = None
        self._said: Said | None = None

    def find(self, message: dict[str, Any]) -> "Node | None":
        """The node of the message that follows here; None if it never did."""
        last = self._last
        if last is not None and last.message == message:
            return last
        node = None
        if message.get("role") == "assistant" and self.answers:
            node = self._answered(message)
        if node is None and self.children:
            node = self.children.get(key_of(message))
        if node is not None:
            node.message = message
            self._last = node
        return node

    def add(self, message: dict[str, Any]) -> "Node":
        """A node for a message that follows here and has none."""
        key = key_of(message)
        digest = hashlib.blake2b(self.digest, digest_size=_DIGEST_BYTES)
        digest.update(repr(key).encode(errors="surrogatepass"))
        node = Node(self, digest.digest(), message)
        self.children[key] = node
        self._last = node
        return node

    def answer(self, call: Call) -> "Node":
        """A node for an answer to the history that ends here."""
        digest = hashlib.blake2b(self.digest, digest_size=_DIGEST_BYTES)
        digest.update(b"answer %d" % call.number)
        node = Node(self, digest.digest(), call.message, call)
        self.answers.append(node)
        self._last = node
        return node

    def messages(self) -> list[Mapping[str, Any]]:
        """The history up to here."""
        found: list[Mapping[str, Any]] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            found.append(node.message)
            node = node.parent
        return found[::-1]

    def _answered(self, message: Mapping[str, Any]) -> "Node | None":
        """The answer that came back in this message: the likest, the latest of equals."""
        theirs = said(message)
        found = [node for node in self.answers if theirs.is_echo_of(node.said)]
        named = [
            node for node in found if theirs.call_ids and theirs.call_ids == node.said.call_ids
        ]
        likest = named or found
        return likest[-1] if likest else None

    @property
    def said(self) -> Said:
        """What the answer said, as we sent it."""
        if self._said is None:
            self._said = said(self.call.message if self.call else self.message)
        return self._said


def root_of(tools: object, options: object) -> Node:
    """The beginning of all histories with these tools and template options."""
    digest = hashlib.blake2b(repr((tools, options)).encode(), digest_size=_DIGEST_BYTES)
    return Node(None, digest.digest(), {})


class Trail:
    """The last request's way through a history, so that the next needn't walk it again.

    Attributes:
        messages: of that request.
        node: the end of its way.
        anchor: the last answer of ours on it.
        after: index of the first message behind the anchor.
    """

    __slots__ = ("after", "anchor", "messages", "node")

    def __init__(self, root: Node) -> None:
        self.messages: list[dict[str, Any]] = []
        self.node = root
        self.anchor: Node | None = None
        self.after = 0

    def begins(self, messages: list[dict[str, Any]]) -> bool:
        """Whether a request goes on from the last one: one comparison at C speed."""
        mine = self.messages
        return len(mine) < len(messages) and messages[: len(mine)] == mine


class Walk:
    """How far a request's messages are known.

    Args:
        root: where they begin.
        messages: without token fields.
        trail: begins them; None to walk them all.

    Attributes:
        node: of the last known message.
        known: how many messages are known.
        anchor: the last answer of ours among them; None for none.
        after: index of the first message behind the anchor; 0 without one.
    """

    __slots__ = ("after", "anchor", "known", "node")

    def __init__(
        self, root: Node, messages: Sequence[dict[str, Any]], trail: Trail | None = None
    ) -> None:
        self.known = len(messages)
        self.anchor = trail.anchor if trail is not None else None
        self.after = trail.after if trail is not None else 0
        first = len(trail.messages) if trail is not None else 0
        node = trail.node if trail is not None else root
        for index in range(first, len(messages)):
            found = node.find(messages[index])
            if found is None:
                self.known = index
                break
            node = found
            if node.call is not None:
                self.anchor, self.after = node, index + 1
        self.node = node

    def take(self, messages: list[dict[str, Any]], trail: Trail) -> Node:
        """The node of the last message, made where it wasn't known; the trail leads there now."""
        node = self.node
        for message in messages[self.known :]:
            node = node.find(message) or node.add(message)
        trail.messages, trail.node = messages, node
        trail.anchor, trail.after = self.anchor, self.after
        return node


def lean(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without token fields."""
    return [
        without_tokens(message) if message.get("role") == "assistant" else message
        for message in messages
    ]
