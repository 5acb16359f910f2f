"""A session: the calls of one rollout, the histories they answered, and what became of it.

It refuses nothing; what went wrong is counted and makes its rollout masked, with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlbridge.contracts.reward import Reward
from rlbridge.contracts.rollout import MaskReason, Rollout
from rlbridge.gateway.calls import Call
from rlbridge.gateway.history import Node, Trail, root_of


@dataclass(slots=True, eq=False)
class Root:
    """The beginning of the histories that share tools and template options.

    Attributes:
        index: among the session's roots.
        tools: in Chat form.
        options: `chat_template_kwargs`.
        node: where their messages hang.
        recorded: whether a captured call has told of it.
        trail: of the last request.
    """

    index: int
    tools: Sequence[Mapping[str, Any]] | None
    options: Mapping[str, Any] | None
    node: Node
    recorded: bool = False
    trail: Trail = field(init=False)

    def __post_init__(self) -> None:
        self.trail = Trail(self.node)


@dataclass(slots=True, eq=False)
class Session:
    """All that is known of one rollout.

    Attributes:
        name: its ID.
        anonymous: nobody named it; it was made for a call without a session.
        group_id: rollouts of one prompt share it.
        metadata: the client's own.
        calls: in the order they were answered.
        answers: the node of each of them.
        roots: see `Root`.
        failed: digests of histories whose last call failed; an answer takes them out.
        untokened: answers the engine gave without tokens.
        reward: as scored; None while nobody has.
        in_flight: calls being answered now.
        used_s: when it was last used, on the store's clock.
        held: tokens in memory.
        replies: answers by request, the latest few, for clients that ask again.
        recorded: whether its opening is captured.
        ended: by its client; nothing is taken up any more.
    """

    name: str
    anonymous: bool = False
    group_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    answers: list[Node] = field(default_factory=list)
    roots: list[Root] = field(default_factory=list)
    failed: set[bytes] = field(default_factory=set)
    untokened: int = 0
    reward: Reward | None = None
    in_flight: int = 0
    used_s: float = 0.0
    held: int = 0
    replies: dict[Any, Any] = field(default_factory=dict)
    recorded: bool = False
    ended: bool = False

    def root(self, tools: Any, options: Any) -> Root:
        """The root for these tools and options."""
        for root in reversed(self.roots):
            if root.tools == tools and root.options == options:
                return root
        index = max((root.index for root in self.roots), default=-1) + 1
        root = Root(index, tools, options, root_of(tools, options))
        self.roots.append(root)
        return root

    def add(self, call: Call, node: Node) -> Node:
        """Take up an answered call under the history it answered; the answer's node."""
        answer = node.answer(call)
        self.calls.append(call)
        self.answers.append(answer)
        self.held += call.held
        self.failed.discard(node.digest)
        return answer

    @property
    def masked(self) -> MaskReason | None:
        """Why its rollout must stay out of the loss; None if it needn't."""
        if self.failed:
            return MaskReason.ENGINE_FAILED
        if self.untokened:
            return MaskReason.TOKENS_LOST
        return None if self.calls else MaskReason.ENGINE_FAILED

    def rollout(self) -> Rollout:
        """Its calls so far; masked where one failed for good or came without tokens."""
        return Rollout(
            self.name,
            tuple(call.turn() for call in self.calls),
            self.reward,
            self.group_id,
            self.masked,
            self.metadata,
        )
