"""What survives a gateway: killed, torn, expired, moved; and what is said where nothing does."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from rlbridge.contracts.codecs.files import rollout_to_json
from rlbridge.contracts.reward import ValidReward
from rlbridge.contracts.rollout import MaskReason
from rlbridge.errors import ConfigError, EngineError
from rlbridge.gateway.captures import captured_rollouts
from rlbridge.gateway.config import CaptureConfig, GatewayConfig, SessionsConfig
from rlbridge.gateway.errors import ApiError
from rlbridge.gateway.exchange import Caller, Reply
from rlbridge.gateway.gateway import Gateway
from rlbridge.gateway.store import SessionStore
from tests.gateway.core_kit import CALL, TOKENIZER, TOOLS, ScriptedEngine

ASK = {"role": "user", "content": "What is it?"}
MORE = {"role": "user", "content": "And then?"}


def config(folder: Path, **fields: Any) -> GatewayConfig:
    return GatewayConfig.parse({"capture": {"folder": folder, "fsync": "always"}, **fields})


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in segments(folder))


async def ask(gateway: Gateway, messages: list[Any], session: str = "s", **fields: Any) -> Any:
    reply = await gateway.chat({"messages": messages, **fields}, Caller(session))
    assert isinstance(reply, Reply)
    message = orjson.loads(reply.body)["choices"][0]["message"]
    known = ("role", "content", "tool_calls", "reasoning")
    return {key: message[key] for key in known if message.get(key)}, reply


async def test_a_session_goes_on_after_a_restart_as_if_nothing_had_been(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    engine.answers.extend([CALL, "Branch.", EngineError("gone", retryable=True)])
    async with Gateway(engine, TOKENIZER, config(tmp_path)) as gateway:
        name = await gateway.open_session("s", group_id="g", metadata={"a": 1})
        answer, _ = await ask(gateway, [ASK], tools=TOOLS)
        await ask(gateway, [ASK])  # without tools: another root
        await gateway.score(name, ValidReward(1.0))
        with pytest.raises(ApiError):
            await ask(gateway, [MORE])
        before = await gateway.rollout("s")
    result = {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "3"}
    async with Gateway(engine, TOKENIZER, config(tmp_path)) as gateway:
        assert await gateway.rollout("s") == before
        assert before.masked is MaskReason.ENGINE_FAILED
        _, reply = await ask(gateway, [ASK, answer, result], tools=TOOLS)
        assert reply.headers["x-rlbridge-prompt"] == "bridged"
        await ask(gateway, [MORE])  # what failed before the restart is answered after it
        rollout = await gateway.rollout("s")
    assert rollout.masked is None
    assert len(rollout.turns) == 4
    known = before.turns[0].token_ids
    assert rollout.turns[2].prompt.token_ids[: len(known)].tolist() == known.tolist()


def test_a_killed_gateway_loses_no_answer_that_was_given(tmp_path: Path) -> None:
    """kill -9 while sessions are answered; every answer a client saw is found again."""
    script = Path(__file__).with_name("core_killed.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([".", *sys.path])}
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    given = [orjson.loads(line) for line in seen if line.endswith("\n")]
    assert len(given) >= 40
    found = recovered(tmp_path)
    for session, number, ids in given:
        assert found[session][number] == ids


def recovered(folder: Path) -> dict[str, list[list[int]]]:
    """Sampled IDs of every call, as a script in a fresh process reads them."""
    code = (
        "import sys, orjson; from pathlib import Path; "
        "from rlbridge.gateway.captures import captured_rollouts; "
        "sys.stdout.write(orjson.dumps({r.rollout_id: [t.sampled_ids.tolist() for t in r.turns] "
        "for r in captured_rollouts(Path(sys.argv[1]))}).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    found: dict[str, list[list[int]]] = orjson.loads(done.stdout)
    return found


async def test_a_line_cut_off_by_a_crash_is_left_alone_and_hides_nothing(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with Gateway(engine, TOKENIZER, config(tmp_path)) as gateway:
        answer, _ = await ask(gateway, [ASK])
        await ask(gateway, [ASK, answer, MORE])
    (segment,) = segments(tmp_path)
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-20])
    async with Gateway(engine, TOKENIZER, config(tmp_path)) as gateway:
        assert len((await gateway.rollout("s")).turns) == 1
        await ask(gateway, [ASK, answer, MORE])
        assert len((await gateway.rollout("s")).turns) == 2
    assert segment.read_bytes() == whole[:-20]
    assert len(segments(tmp_path)) == 2


async def test_a_record_grows_with_what_is_new_not_with_the_history(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    history: list[Any] = [ASK]
    sizes = []
    async with Gateway(engine, TOKENIZER, config(tmp_path)) as gateway:
        for _ in range(30):
            before = written(tmp_path)
            answer, _ = await ask(gateway, history)
            sizes.append(written(tmp_path) - before)
            history += [answer, MORE]
    assert sizes[-1] < sizes[2] + 20


async def test_two_gateways_in_one_folder_keep_out_of_each_others_files(tmp_path: Path) -> None:
    async with (
        Gateway(ScriptedEngine(), TOKENIZER, config(tmp_path)) as one,
        Gateway(ScriptedEngine(), TOKENIZER, config(tmp_path)) as two,
    ):
        await ask(one, [ASK], "one")
        await ask(two, [ASK], "two")
        await ask(one, [MORE], "one")
    async with Gateway(ScriptedEngine(), TOKENIZER, config(tmp_path)) as gateway:
        assert len((await gateway.rollout("one")).turns) == 2
        assert len((await gateway.rollout("two")).turns) == 1


async def test_captures_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "calls-000001.jsonl").write_text('{"rlbridge":"captures","version":99}\n')
    with pytest.raises(ConfigError, match="no captures of version 1"):
        async with Gateway(ScriptedEngine(), TOKENIZER, config(tmp_path)):
            pass


async def test_an_answer_that_cant_be_captured_is_not_given_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Gateway(ScriptedEngine(), TOKENIZER, config(tmp_path)) as gateway:
        await ask(gateway, [ASK])
        monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(ApiError, match="couldn't be captured") as told:
            await ask(gateway, [MORE])
        monkeypatch.undo()
        assert told.value.status == 500
        await ask(gateway, [MORE])
        assert len((await gateway.rollout("s")).turns) == 2


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_idle_session_without_captures_is_a_410_that_says_why() -> None:
    clock = Clock()
    store = SessionStore(SessionsConfig(idle_expiry_s=10), clock=clock)
    await store.get("old", create=True)
    clock.now = 9.0
    await store.get("young", create=True)
    clock.now = 11.0
    store.expire()
    assert len(store) == 1
    with pytest.raises(ApiError, match="was idle for 10 s and isn't captured") as told:
        await store.get("old", create=True)
    assert told.value.status == 410


async def test_a_session_with_a_call_in_flight_never_expires() -> None:
    clock = Clock()
    store = SessionStore(SessionsConfig(idle_expiry_s=10), clock=clock)
    session = await store.get("busy", create=True)
    session.in_flight = 1
    clock.now = 100.0
    store.expire()
    assert len(store) == 1


async def test_without_room_new_sessions_are_refused_and_old_ones_kept() -> None:
    store = SessionStore(SessionsConfig(max_sessions=2))
    await store.get("a", create=True)
    store.anonymous()
    await store.get("b", create=True)  # the anonymous one gave way
    with pytest.raises(ApiError) as told:
        await store.get("c", create=True)
    assert (told.value.status, told.value.code) == (503, "too_many_sessions")
    assert len(store) == 2


async def test_captured_sessions_wait_on_disk_when_memory_is_short(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    small = config(tmp_path, sessions={"max_sessions": 2})
    async with Gateway(engine, TOKENIZER, small) as gateway:
        answers = {}
        for number in range(6):
            answers[number], _ = await ask(gateway, [ASK], f"s{number}")
        assert gateway.counts()["sessions"] <= 2
        for number in range(6):
            _, reply = await ask(gateway, [ASK, answers[number], MORE], f"s{number}")
            assert reply.headers["x-rlbridge-prompt"] == "bridged"
        tokens = gateway.counts()["session_tokens"]
        held = [len((await gateway.rollout(f"s{n}")).turns[-1].token_ids) for n in (4, 5)]
        assert tokens == sum(held)


async def test_ended_sessions_stay_ended_and_are_still_read(tmp_path: Path) -> None:
    for _ in range(2):
        async with Gateway(ScriptedEngine(), TOKENIZER, config(tmp_path)) as gateway:
            with pytest.raises(ApiError):
                await gateway.rollout("s")
            await ask(gateway, [ASK])
            await gateway.end_session("s")
    rollouts = list(captured_rollouts(tmp_path))
    assert [rollout.rollout_id for rollout in rollouts] == ["s", "s~2"]
    assert [len(rollout.turns) for rollout in rollouts] == [1, 1]


async def test_every_fsync_policy_writes_the_same(tmp_path: Path) -> None:
    documents = []
    for policy in ("never", "interval", "always"):
        folder = tmp_path / policy
        capture = CaptureConfig(folder=folder, fsync=policy, fsync_interval_s=0.01)
        async with Gateway(ScriptedEngine(), TOKENIZER, GatewayConfig(capture=capture)) as gateway:
            await ask(gateway, [ASK])
            documents.append(rollout_to_json(await gateway.rollout("s")))
        async with Gateway(ScriptedEngine(), TOKENIZER, GatewayConfig(capture=capture)) as gateway:
            assert rollout_to_json(await gateway.rollout("s")) == documents[-1]
    assert documents[0] == documents[1] == documents[2]
