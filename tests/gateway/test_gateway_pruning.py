"""Captures deleted in time: whole sessions or nothing, beside a gateway, killed, by the gateway."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rlbridge.cli.main import app
from rlbridge.errors import ConfigError
from rlbridge.gateway.capture import CaptureLog
from rlbridge.gateway.captures import captured_rollouts
from rlbridge.gateway.config import CaptureConfig, GatewayConfig
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.exchange import Caller
from rlbridge.gateway.gateway import Gateway
from rlbridge.gateway.locks import GATEWAYS, PRUNING, is_locked, try_lock
from rlbridge.gateway.prune_plan import Why
from rlbridge.gateway.pruning import prune
from rlbridge.gateway.segments import read_pruned
from tests.gateway.core_kit import TOKENIZER, ScriptedEngine

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([".", *sys.path])}
ASK = {"role": "user", "content": "What is it?"}
# 400 bytes: a segment holds a few records.
SMALL = 0.0004


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("calls-*.jsonl"))


def records(folder: Path) -> dict[str, list[Any]]:
    """Every session's records as a reader of the folder finds them."""
    log = CaptureLog(folder, CaptureConfig(folder=folder), read_only=True)
    log.recover()
    return {name: log.records(name) for name in log.sessions()}


def opened(folder: Path, **fields: Any) -> CaptureLog:
    log = CaptureLog(
        folder, CaptureConfig(folder=folder, fsync="never", segment_mb=SMALL, **fields)
    )
    log.recover()
    return log


@dataclass
class Life:
    """A session from its first record to its end; `name` is a reader's."""

    of: str
    name: str
    written: list[Any] = field(default_factory=list)
    segments: set[str] = field(default_factory=set)
    ended: bool = False


class Story:
    """A folder of captures, and what should be in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lives: list[Life] = []
        # Later sessions of a name are numbered for as long as anything of it is in a file.
        self.ended: Counter[str] = Counter()
        self.traces: defaultdict[str, set[str]] = defaultdict(set)
        self.log = opened(folder)
        self.written = 0
        self.current = ""
        self.cutoff_s = 0.0

    def life(self, of: str) -> Life:
        mine = [life for life in self.lives if life.of == of]
        if mine and not mine[-1].ended:
            return mine[-1]
        ended = self.ended[of]
        self.lives.append(Life(of, f"{of}~{ended + 1}" if ended else of))
        return self.lives[-1]

    def append(self, of: str, kind: str) -> None:
        life = self.life(of)
        if kind == "end" and not life.written:
            self.lives.remove(life)
            return
        self.written += 1
        record = {"number": self.written, "text": "x" * (self.written % 150)}
        self.log.append(of, kind, record)
        self.current = files(self.folder)[-1]
        life.segments.add(self.current)
        self.traces[of].add(self.current)
        if kind == "end":
            life.ended = True
            self.ended[of] += 1
        else:
            life.written.append({"session": of, "kind": kind, **record})

    async def restart(self) -> None:
        await self.log.aclose()
        self.log, self.current = opened(self.folder), ""

    async def crash(self) -> None:
        """As after kill -9 in the middle of a write: no index, half a line."""
        await self.log.aclose()
        if self.current:
            (self.folder / self.current).with_suffix(".index").unlink()
            with (self.folder / self.current).open("ab") as file:
                file.write(b'{"session":"a","kind":"ca')
        self.log, self.current = opened(self.folder), ""

    def spoil(self, how: str) -> None:
        for index in self.folder.glob("*.index"):
            whole = index.read_bytes()
            if how == "gone":
                index.unlink()
            elif how == "cut":
                index.write_bytes(whole[:-3])
            else:
                index.write_bytes(whole.replace(b":[", b":[1,", 1))

    async def prune(self, cutoff_s: float, *, beside: bool) -> None:
        if not beside:
            await self.log.aclose()
            self.current = ""
        stays = self.staying(cutoff_s, beside=beside)
        if files(self.folder):
            prune(self.folder, cutoff_s)
        assert set(files(self.folder)) == stays
        for of in {life.of for life in self.lives}:
            mine = [life for life in self.lives if life.of == of]
            going = [at for at, life in enumerate(mine) if life.segments - stays]
            for life in mine[: going[-1] + 1] if going else ():
                self.lives.remove(life)  # and the earlier ones of its name
        for of, segments in self.traces.items():
            if not segments & stays:
                self.ended[of] = 0
        if not beside:
            self.log = opened(self.folder)

    def staying(self, cutoff_s: float, *, beside: bool) -> set[str]:
        """What the rule says, worked out life by life."""
        fresh = {
            name
            for name in files(self.folder)
            if (self.folder / name).stat().st_mtime >= cutoff_s or name == self.current
        }
        kept: list[Life] = []
        for life in self.lives:
            if (
                life.segments & fresh
                or (beside and not life.ended)
                or any(earlier.of == life.of for earlier in kept)
            ):
                kept.append(life)
        return fresh.union(*(life.segments for life in kept))

    def check(self) -> None:
        assert records(self.folder) == {life.name: life.written for life in self.lives}
        found = {name: self.log.records(name) for name in self.log.sessions()}
        assert found == {life.of: life.written for life in self.lives if not life.ended}


NAMES = st.sampled_from("abcd")
STEPS = st.one_of(
    *[st.tuples(st.just("call"), NAMES)] * 4,
    *[st.tuples(st.just("end"), NAMES)] * 3,
    st.tuples(st.sampled_from(["restart", "crash", "age"]), st.just("")),
    *[st.tuples(st.sampled_from(["alone", "beside", "beside"]), st.sampled_from(["all", "old"]))]
    * 2,
    st.tuples(st.just("spoil"), st.sampled_from(["gone", "cut", "changed"])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, min_size=10, max_size=60))
def test_a_session_is_read_back_whole_or_is_wholly_gone(steps: list[tuple[str, str]]) -> None:
    """Sessions, restarts, crashes, spoilt indexes and prunings in any order."""

    async def tell(folder: Path) -> None:
        story = Story(folder)
        for step, what in steps:
            match step:
                case "call" | "end":
                    story.append(what, step)
                case "restart":
                    await story.restart()
                case "crash":
                    await story.crash()
                case "age":
                    story.cutoff_s = time.time()
                case "spoil":
                    story.spoil(what)
                case _:
                    cutoff_s = time.time() + 1 if what == "all" else story.cutoff_s
                    await story.prune(cutoff_s, beside=step == "beside")
                    story.check()
        story.check()
        await story.log.aclose()

    with TemporaryDirectory() as folder:
        asyncio.run(tell(Path(folder)))


async def write_old_and_new(folder: Path) -> None:
    """Sessions over several segments; `new` is in one from the future, `shared` in both kinds."""
    log = opened(folder)
    for number in range(4):
        for turn in range(5):
            log.append(f"old{number}", "call", {"turn": turn, "text": "x" * 90})
    log.append("shared", "call", {"turn": 0})
    await log.aclose()
    old = set(files(folder))
    log = opened(folder)
    for turn in range(3):
        log.append("new", "call", {"turn": turn})
    log.append("shared", "call", {"turn": 1})
    await log.aclose()
    for name in set(files(folder)) - old:
        os.utime(folder / name, (time.time() + 3600,) * 2)


def prune_at_every_step(what: str, folder: Path) -> None:
    script = Path(__file__).with_name("prune_steps.py")
    command = [sys.executable, str(script), what, str(folder)]
    subprocess.run(command, env=ENVIRONMENT, check=True)


def test_who_reads_while_captures_are_deleted_finds_sessions_whole_or_not_at_all(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "calls"
    asyncio.run(write_old_and_new(folder))
    prune_at_every_step("read", folder)
    assert len(list(tmp_path.glob("read-*"))) > 2 * len(files(folder))


def test_killed_at_any_step_it_loses_nothing_that_stays_and_can_be_run_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "calls"
    asyncio.run(write_old_and_new(folder))
    old = {name for name in files(folder) if (folder / name).stat().st_mtime < time.time()}
    before = records(folder)
    prune_at_every_step("killed", folder)
    copies = sorted(tmp_path.glob("killed-*"))
    assert len(copies) > len(old)
    stays = {name: before[name] for name in ("new", "shared")}
    done: Counter[bool] = Counter()
    for copy in copies:
        found = records(copy)
        assert found in (before, stays)
        done[found == stays] += 1
        again = prune(copy, time.time() + 1)
        assert records(copy) == stays
        assert again.kept == {Why.YOUNG: 1, Why.SHARED: 1}
        assert len(set(files(copy)) & old) == 1
        assert read_pruned(copy).segments == ()
    assert all(done[whether] > 1 for whether in (False, True))
    assert records(folder) == before


def test_beside_a_running_gateway_open_sessions_stay_and_ended_ones_go(tmp_path: Path) -> None:
    script = Path(__file__).with_name("core_killed.py")
    answered: defaultdict[str, list[Any]] = defaultdict(list)
    ended: set[str] = set()
    pruned = 0
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), "3"],
        stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            for at, line in enumerate(process.stdout):
                name, number, ids = orjson.loads(line)
                if number == "end":
                    ended.add(name)
                else:
                    answered[name].append(ids)
                if at % 100 == 99:
                    plan = prune(tmp_path, time.time())
                    assert plan.gateway
                    assert not plan.open_sessions
                    pruned += plan.sessions
                if at == 600:
                    break
        finally:
            process.send_signal(signal.SIGKILL)
    assert pruned > 100
    found = {
        r.rollout_id: [t.sampled_ids.tolist() for t in r.turns] for r in captured_rollouts(tmp_path)
    }
    for name, answers in answered.items():
        if name in found:
            assert found[name][: len(answers)] == answers
        else:
            assert name in ended
    assert prune(tmp_path, time.time() + 1).sessions == len(found)
    assert list(captured_rollouts(tmp_path)) == []


def gateway(folder: Path, **capture: Any) -> Gateway:
    fields = {"folder": folder, "fsync": "never", "segment_mb": SMALL, **capture}
    config = {"capture": fields, "sessions": {"max_sessions": 3}}
    return Gateway(ScriptedEngine(), TOKENIZER, GatewayConfig.parse(config))


async def until_pruned(gateway: Gateway, segments: int) -> None:
    async with asyncio.timeout(30):
        while gateway.counts().get("pruned_segments", 0) < segments:  # noqa: ASYNC110 # no event for it
            await asyncio.sleep(0.01)


async def test_a_gateway_keeps_so_much_and_the_sessions_in_memory(tmp_path: Path) -> None:
    """At its start and while it runs; who asks for what was deleted is told so."""
    async with gateway(tmp_path) as first:
        for number in range(20):
            await first.chat({"messages": [ASK]}, Caller(f"s{number}"))
    async with gateway(tmp_path, keep_gb=4e-6) as second:
        await until_pruned(second, 10)
        assert sum((tmp_path / name).stat().st_size for name in files(tmp_path)) <= 4000
        with pytest.raises(ApiError, match="deleted") as told:
            await second.rollout("s0")
        assert told.value.status == 410
        assert len((await second.rollout("s19")).turns) == 1
        pruned = second.counts()["pruned_segments"]
        for number in range(20):
            await second.chat({"messages": [ASK]}, Caller(f"t{number}"))
            await second.rollout("s19")
        await until_pruned(second, pruned + 1)
        assert len((await second.rollout("s19")).turns) == 1
    left = {rollout.rollout_id for rollout in captured_rollouts(tmp_path)}
    assert "s19" in left
    assert "s0" not in left


async def test_a_gateway_deletes_what_is_older_than_its_days(tmp_path: Path) -> None:
    async with gateway(tmp_path) as first:
        await first.chat({"messages": [ASK]}, Caller("old"))
    (segment,) = files(tmp_path)
    os.utime(tmp_path / segment, (time.time() - 3 * 86_400,) * 2)
    async with gateway(tmp_path) as first:
        await first.chat({"messages": [ASK]}, Caller("young"))
    async with gateway(tmp_path, keep_days=2) as second:
        await until_pruned(second, 1)
    assert [rollout.rollout_id for rollout in captured_rollouts(tmp_path)] == ["young"]


async def test_numbers_of_deleted_segments_are_not_used_again(tmp_path: Path) -> None:
    for session in ("one", "two"):
        log = opened(tmp_path)
        log.append(session, "call", {})
        await log.aclose()
        found = files(tmp_path)
        assert prune(tmp_path, time.time() + 1).sessions == 1
    assert found == ["calls-000002.jsonl"]


async def test_a_segment_with_a_good_index_is_not_read_at_the_start(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.append("s", "call", {"text": "x"})
    await log.aclose()
    (segment,) = (tmp_path / name for name in files(tmp_path))
    stat, whole = segment.stat(), segment.read_bytes()
    segment.write_bytes(b"x" * len(whole))
    os.utime(segment, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    log = opened(tmp_path)
    assert list(log.sessions()) == ["s"]
    await log.aclose()
    segment.write_bytes(whole + b'{"session":"t","kind":"call"}\n')  # grown: its index is stale
    assert list(records(tmp_path)) == ["s", "t"]


async def test_a_session_ended_during_a_call_takes_up_nothing_more(tmp_path: Path) -> None:
    one = gateway(tmp_path)
    engine = one.engine
    assert isinstance(engine, ScriptedEngine)
    async with one:
        await one.chat({"messages": [ASK]}, Caller("s"))
        engine.gate = asyncio.Event()
        call = asyncio.create_task(one.chat({"messages": [ASK, ASK]}, Caller("s")))
        while len(engine.calls) < 2:  # noqa: ASYNC110 # the engine has no event for it
            await asyncio.sleep(0)
        await one.end_session("s")
        engine.gate.set()
        with pytest.raises(ApiError, match="ended by its client during this call"):
            await call
        assert one.counts()["session_tokens"] == 0
    assert [len(rollout.turns) for rollout in captured_rollouts(tmp_path)] == [1]


def invoke(*arguments: Any) -> Any:
    command = ["gateway", "captures", "prune", *map(str, arguments)]
    return CliRunner().invoke(app, command)


def test_the_command_says_what_it_deletes_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    asyncio.run(write_old_and_new(tmp_path))
    for index in tmp_path.glob("*.index"):
        index.unlink()
    there = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for name in files(tmp_path)[:-1]:
        os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    told = invoke("--older-than", "1h", "--dry-run", tmp_path)
    assert told.exit_code == 0
    count = len(files(tmp_path)) - 2
    assert f"would delete {count} segments, 4 sessions" in told.stdout
    assert "1 not old enough (1h)" in told.stdout
    assert set(tmp_path.iterdir()) == set(there)
    done = json.loads(invoke("--older-than", "1h", "--json", tmp_path).stdout)
    assert (len(done["deleted"]), done["sessions"], done["gateway_running"]) == (count, 4, False)
    assert done["kept"] == {"young": 1, "shared": 1}
    assert set(records(tmp_path)) == {"new", "shared"}


def test_with_a_gateway_running_it_says_why_sessions_stay(tmp_path: Path) -> None:
    asyncio.run(write_old_and_new(tmp_path))
    log = opened(tmp_path)
    told = invoke("--older-than", "0.0000001m", tmp_path)
    assert "deleted 0 segments" in told.stdout
    assert "A gateway runs on this folder" in told.stdout
    asyncio.run(log.aclose())


def test_what_is_no_folder_of_captures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calls-letter.jsonl").write_text("Dear all,\n")
    for folder, why in (
        (tmp_path / "none", "holds no captures"),
        (tmp_path, "holds no captures of version 1"),
    ):
        told = invoke("--older-than", "1m", folder)
        assert told.exit_code == 1
        assert why in str(told.exception)
    for age in ("7", "0d", "-1d", "soon"):
        assert invoke(f"--older-than={age}", tmp_path).exit_code == 2
    assert files(tmp_path) == ["calls-letter.jsonl"]


def test_two_prunings_at_once_and_a_second_gateway_that_deletes_are_refused(
    tmp_path: Path,
) -> None:
    log = opened(tmp_path, keep_days=1)
    log.append("s", "call", {})
    assert try_lock(tmp_path / GATEWAYS, shared=True) is None  # no other gateway begins
    lock = try_lock(tmp_path / PRUNING)
    assert lock is not None
    with pytest.raises(ConfigError, match="being deleted by another process"):
        prune(tmp_path, time.time())
    os.close(lock)
    asyncio.run(log.aclose())
    assert not is_locked(tmp_path / GATEWAYS)


def test_how_much_is_kept_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="are about files"):
        GatewayConfig.parse({"capture": {"keep_days": 7}})
