"""Which captures may be deleted: with a session all of it or nothing.

A session may go once it is old: nothing was written to any segment it is in for long, and it has
ended, or nobody can go on with it. A segment goes once all its sessions may. What they have in
segments that stay, for the sake of other sessions, is then deleted too in all readers' eyes
(`Cut`). Refuses to split a session: none is read back by half.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Self

from rlbridge.gateway.locks import is_locked
from rlbridge.gateway.segments import (
    END,
    Cut,
    contents_of,
    number_of,
    segments_in,
)

Track = Callable[[Sequence[Path]], Iterable[Path]]


class Why(StrEnum):
    """Why a segment stays."""

    WRITTEN = "being written by a gateway"
    YOUNG = "not old enough"
    OPEN = "with sessions that haven't ended"
    SHARED = "with sessions that go on in one of these"


@dataclass(frozen=True, slots=True)
class Rule:
    """What may go.

    Attributes:
        before_s: segments last written to before this moment, seconds since 1970.
        newest_bytes: and those that are not among the newest so many bytes; None for no bound.
        may_go: whether a session that hasn't ended may go; asked by name.
        gateway: whether a gateway is at work in the folder.
    """

    before_s: float
    newest_bytes: float | None
    may_go: Callable[[str], bool]
    gateway: bool

    @classmethod
    def by_age(cls, before_s: float, *, gateway: bool) -> Self:
        """What is old; sessions that haven't ended only where no gateway may go on with them."""
        return cls(before_s, None, lambda _: not gateway, gateway)


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as it was found.

    Attributes:
        path: where it is.
        size: bytes.
        written_s: when it was last written to, seconds since 1970.
        sessions: how many begin in it.
    """

    path: Path
    size: int
    written_s: float
    sessions: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be deleted.

    Attributes:
        goes: segments, the oldest first.
        kept: how many stay, and why.
        kept_bytes: how much stays.
        gateway: see `Rule`.
        sessions: how many go.
        open_sessions: those of them that haven't ended, and the latest segment each is in.
        cuts: see `Pruned`; as they are to be.
    """

    goes: list[Segment]
    kept: Counter[Why]
    kept_bytes: int
    gateway: bool
    sessions: int = 0
    open_sessions: dict[str, Path] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """How much goes."""
        return sum(segment.size for segment in self.goes)


class _Seen(NamedTuple):
    """A name in a segment: how many entries it has, how many are deleted, which are ends."""

    at: int
    entries: int
    deleted: int
    ends: tuple[int, ...]


class _Life(NamedTuple):
    """A session: its segments, whether it ended, its last segment and entry there."""

    segments: list[int]
    ended: bool
    last: tuple[int, int]


def plan(folder: Path, rule: Rule, track: Track = iter, *, keep_index: bool = True) -> Plan:
    """What a rule deletes from a folder.

    Args:
        folder: of captures.
        rule: see `Rule`.
        track: is given the segments to be read.
        keep_index: write indexes where there are none.

    Raises:
        ConfigError: the captures are of another version.
        OSError: they can't be read.
    """
    paths, pruned = segments_in(folder)
    cuts = pruned.cuts
    segments: list[Segment] = []
    names: dict[str, tuple[_Seen, ...]] = {}
    known: dict[tuple[_Seen, ...], tuple[_Seen, ...]] = {}
    for at, path in enumerate(track(paths)):
        for name, places in contents_of(path, keep_index=keep_index).items():
            gone = cuts[name].deleted(number_of(path), len(places)) if name in cuts else 0
            ends = tuple(i for i, place in enumerate(places) if place == END)
            seen = (*names.get(name, ()), _Seen(at, len(places), gone, ends))
            names[name] = known.setdefault(seen, seen)  # most are alike: hold them once
        stat = path.stat()
        segments.append(Segment(path, stat.st_size, stat.st_mtime))
    stays = _staying(names, _fresh(segments, rule), rule)
    begun = Counter(life.segments[0] for seen in names.values() for life in _lives(seen))
    found = Plan(
        [
            replace(segment, sessions=begun[at])
            for at, segment in enumerate(segments)
            if at not in stays
        ],
        Counter(stays.values()),
        sum(segments[at].size for at in stays),
        rule.gateway,
    )
    return _with_sessions(found, names, stays, segments, cuts)


def _fresh(segments: list[Segment], rule: Rule) -> dict[int, Why]:
    """The segments that stay for their own sake."""
    fresh, newer = {}, 0
    for at, segment in reversed(list(enumerate(segments))):
        newer += segment.size
        large = rule.newest_bytes is not None and newer > rule.newest_bytes
        if is_locked(segment.path):
            fresh[at] = Why.WRITTEN
        elif segment.written_s >= rule.before_s and not large:
            fresh[at] = Why.YOUNG
    return fresh


def _staying(
    names: Mapping[str, tuple[_Seen, ...]], fresh: Mapping[int, Why], rule: Rule
) -> dict[int, Why]:
    """All segments that stay."""
    stays = dict(fresh)
    for name, seen in names.items():
        kept = False
        for life in _lives(seen):
            is_open = not life.ended and not rule.may_go(name)
            # Where a session stays, later ones of its name do: a cut is a beginning.
            kept = kept or is_open or any(at in fresh for at in life.segments)
            for at in life.segments if kept else ():
                if at not in fresh and (is_open or at not in stays):
                    stays[at] = Why.OPEN if is_open else Why.SHARED
    return stays


def _with_sessions(
    found: Plan,
    names: Mapping[str, tuple[_Seen, ...]],
    stays: Mapping[int, Why],
    segments: list[Segment],
    cuts: Mapping[str, Cut],
) -> Plan:
    """The plan, with the sessions that its segments take along."""
    count = 0
    open_sessions, new_cuts = {}, {}
    for name, seen in names.items():
        staying = any(one.at in stays for one in seen)
        if name in cuts and staying:
            new_cuts[name] = cuts[name]
        lives = list(_lives(seen))
        going = [i for i, life in enumerate(lives) if any(at not in stays for at in life.segments)]
        if not going:
            continue
        gone = lives[: going[-1] + 1]
        count += len(gone)
        at, entries = gone[-1].last
        if not gone[-1].ended:
            open_sessions[name] = segments[at].path
        if staying:
            before = cuts[name].ended if name in cuts else 0
            ended = before + sum(life.ended for life in gone)
            new_cuts[name] = Cut(number_of(segments[at].path), entries, ended)
    return replace(found, sessions=count, open_sessions=open_sessions, cuts=new_cuts)


def _lives(seen: Iterable[_Seen]) -> Iterator[_Life]:
    """The sessions of a name, in their order."""
    segments: list[int] = []
    last = (0, 0)
    for at, entries, deleted, ends in seen:
        begin = deleted
        for end in ends:
            if end >= begin:
                yield _Life([*segments, at], True, (at, end + 1))
                segments, begin = [], end + 1
        if begin < entries:
            segments.append(at)
            last = at, entries
    if segments:
        yield _Life(segments, False, last)
