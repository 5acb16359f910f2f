"""Where a conversation belongs: its session, and how much of its history is known there.

The session that a request names (URL, header, metadata); else, where it brings the tokens of an
answer of ours along, the session of that answer, if the rest of its messages is that session's
too; else one of its own. Refuses messages and tools that the openai package's types refuse.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.exchange import Caller
from rlbridge.gateway.given import Given, given_tokens
from rlbridge.gateway.history import Walk, lean
from rlbridge.gateway.openai_types import check_objects, check_tools
from rlbridge.gateway.sessions import Root, Session
from rlbridge.gateway.store import SessionStore

SESSION_FIELD = "rlbridge_session"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a conversation belongs.

    Attributes:
        session: whose it is.
        root: its tools and template options.
        messages: all of them, without token fields.
        walk: how far they are known there.
        given: tokens the client brought.
    """

    session: Session
    root: Root
    messages: list[dict[str, Any]]
    walk: Walk
    given: Given | None


class Places:
    """Finds where conversations belong.

    Args:
        store: the sessions.
        implicit: whether a call that names a session nobody opened opens it.
    """

    def __init__(self, store: SessionStore, *, implicit: bool) -> None:
        self._store = store
        self._implicit = implicit

    async def find(self, body: Mapping[str, Any], caller: Caller) -> Place:
        """Where a conversation belongs, and how much of it is known there.

        Raises:
            ApiError: what is wrong with its messages, tools or session.
        """
        raw: list[Any] = body["messages"]
        tools, options = body.get("tools") or None, body.get("chat_template_kwargs") or None
        if not (caller.session or _named(body)):
            given = given_tokens(body, check_objects(raw))
            messages = lean(raw)
            if given is not None and given.sampled_ids:
                found = await self._echoed(given, messages, tools, options)
                if found is not None:
                    return found
            session = self._store.anonymous()
            root = self._root(session, tools, options)
            return Place(session, root, messages, Walk(root.node, messages), given)
        session = await self.session(caller, body)
        root = self._root(session, tools, options)
        trail = root.trail if root.trail.begins(raw) else None
        known = trail.messages if trail is not None else []
        new = check_objects(raw[len(known) :], len(known))
        given = given_tokens(body, new, len(known))
        messages = known + lean(new)  # the known ones as they are held already, not a second copy
        return Place(session, root, messages, Walk(root.node, messages, trail), given)

    async def session(self, caller: Caller, body: Mapping[str, Any]) -> Session:
        """The session a request names, or one of its own.

        Raises:
            ApiError: see `SessionStore.get`.
        """
        name = caller.session or _named(body)
        if name:
            return await self._store.get(name, create=self._implicit)
        return self._store.anonymous()

    async def _echoed(
        self, given: Given, messages: list[dict[str, Any]], tools: Any, options: Any
    ) -> Place | None:
        """The session whose tokens a client brought back, if its messages are that session's."""
        known = self._store.echoed(given.echo())
        if known is None:
            return None
        session = await self._store.get(known)
        root = self._root(session, tools, options)
        walk = Walk(root.node, messages)
        anchor = walk.anchor.call if walk.anchor else None
        if anchor is None or given.index != walk.after - 1 or not given.are_of(anchor):
            return None
        return Place(session, root, messages, walk, given)

    def _root(self, session: Session, tools: Any, options: Any) -> Root:
        if tools is not None and not any(root.tools == tools for root in session.roots):
            check_tools(tools)
        if options is not None and not isinstance(options, dict):
            name = "chat_template_kwargs"
            raise ApiError(f"{name} must be an object", param=name)
        return session.root(tools, options)


def _named(body: Mapping[str, Any]) -> str:
    """The session that a body's metadata names; empty for none."""
    metadata = body.get("metadata")
    name = metadata.get(SESSION_FIELD) if isinstance(metadata, Mapping) else None
    return name if isinstance(name, str) else ""
