"""Kill a replica and the gateway under 200 conversations: what was lost, what was retried.

Two engines and the gateway are processes. Clients are as patient as real ones: a call that got
no answer, or a 503, is sent again, word for word. Killed with SIGKILL, first a replica, then the
gateway itself; both come back at their old address. Then every session's rollout is read and
compared with what its client was told. Run: `python -m benchmarks.gateway_chaos [--json]`.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.engine import free_port
from benchmarks.gateway_contenders import QUESTION, make_tokenizer, running_gateway
from benchmarks.stub_engine import MODEL, Answer, running_stub
from rlbridge.contracts.codecs.files import rollout_from_json
from rlbridge.onpolicy.build import build

Call = tuple[list[int], list[int]]  # a prompt's IDs, and those sampled after it

ENGINE_DELAY_S = 0.05
GIVE_UP_S = 90.0


@dataclass
class Talk:
    """One client's conversation.

    Attributes:
        told: the IDs of each answer it got, in order.
        resent: calls sent again, by what had gone wrong.
        wrong: answers that were neither 200 nor a 503.
    """

    session: str
    told: list[Call] = field(default_factory=list)
    resent: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


async def converse(http: aiohttp.ClientSession, url: str, talk: Talk, turns: int) -> None:
    """Hold one conversation, sending again what got no answer."""
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"{talk.session} {turn}: {QUESTION}"})
        body = {"model": MODEL, "messages": messages, "max_tokens": 64, "temperature": 1.0}
        reply = await _asked(http, f"{url}/s/{talk.session}/v1/chat/completions", body, talk)
        if reply is None:
            return
        message = reply["choices"][0]["message"]
        talk.told.append((message["prompt_token_ids"], message["generation_token_ids"]))
        messages.append({"role": "assistant", "content": message["content"]})


async def _asked(
    http: aiohttp.ClientSession, url: str, body: dict[str, Any], talk: Talk
) -> dict[str, Any] | None:
    deadline = time.monotonic() + GIVE_UP_S
    while time.monotonic() < deadline:
        try:
            async with http.post(url, json=body) as answer:
                if answer.status == 200:
                    return dict(await answer.json())
                if answer.status != 503:
                    talk.wrong.append(f"{answer.status}: {(await answer.text())[:300]}")
                    return None
                talk.resent["503"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            talk.resent[type(error).__name__] += 1
        await asyncio.sleep(0.2)
    talk.wrong.append(f"no answer within {GIVE_UP_S:.0f} s")
    return None


@dataclass
class Kept:
    """What the gateway has of a session: all its calls, and those that `build` would train."""

    calls: list[Call] = field(default_factory=list)
    trained: list[Call] = field(default_factory=list)


async def kept_of(http: aiohttp.ClientSession, url: str, session: str) -> Kept:
    """The prompt and the sampled IDs of every call of a session."""
    async with http.get(f"{url}/s/{session}/rollout") as answer:
        if answer.status != 200:
            return Kept()
        rollout = rollout_from_json((await answer.json())["rollout"])
    calls = [(turn.prompt.token_ids.tolist(), turn.sampled_ids.tolist()) for turn in rollout.turns]
    owners = build(rollout).owners
    trained = [call for call, owner in zip(calls, owners, strict=True) if owner >= 0]
    return Kept(calls, trained)


class Stage:
    """The processes: two engines and a gateway, each killed and started anew at its address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answer: Answer = make_tokenizer(folder / "tokenizer")
        self._engine_ports = [free_port(), free_port()]
        self._port = free_port()
        self._stacks: dict[str, ExitStack] = {}
        self._pids: dict[str, int] = {}
        config = folder / "gateway.yaml"
        urls = [f"http://127.0.0.1:{port}" for port in self._engine_ports]
        config.write_text(json.dumps({"policy": {"urls": urls, "health_interval_s": 0.5}}))
        self._config = config

    @property
    def url(self) -> str:
        """The gateway's."""
        return f"http://127.0.0.1:{self._port}"

    def start(self, name: str) -> None:
        """Start `engine 0`, `engine 1` or `gateway`."""
        stack = self._stacks[name] = ExitStack()
        if name == "gateway":
            contender = stack.enter_context(
                running_gateway(None, self.folder / "tokenizer", self.folder / "captures",
                                str(self._config), port=self._port)
            )  # fmt: skip
            self._pids[name] = contender.pid
            return
        port = self._engine_ports[int(name[-1])]
        _, self._pids[name] = stack.enter_context(
            running_stub(self.answer, port=port, delay_s=ENGINE_DELAY_S)
        )

    def kill(self, name: str) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        os.kill(self._pids[name], signal.SIGKILL)
        self._stacks.pop(name).close()

    def close(self) -> None:
        """End what still runs."""
        for stack in self._stacks.values():
            stack.close()


async def play(stage: Stage, sessions: int, turns: int) -> dict[str, Any]:
    """The conversations, the killings, and the comparison."""
    talks = [Talk(f"c{number}") for number in range(sessions)]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        started = time.monotonic()
        clients = [asyncio.create_task(converse(http, stage.url, talk, turns)) for talk in talks]
        async with asyncio.TaskGroup() as returns:
            for name, share in (("engine 0", 0.2), ("gateway", 0.5)):
                await _until(talks, clients, share, turns)
                if name == "gateway":
                    retried = await _failovers(http, stage.url)
                stage.kill(name)
                returns.create_task(_back(stage, name))
        await asyncio.gather(*clients)
        wall_s = time.monotonic() - started
        kept = [await kept_of(http, stage.url, talk.session) for talk in talks]
    return compare(talks, kept, turns) | {
        "retried_on_another_replica": retried,
        "wall_s": round(wall_s, 1),
    }


async def _failovers(http: aiohttp.ClientSession, url: str) -> int:
    """Calls that the gateway itself sent again, so far."""
    async with http.get(f"{url}/status") as answer:
        return int((await answer.json())["counts"]["engine_failovers"])


async def _back(stage: Stage, name: str) -> None:
    await asyncio.sleep(1.0)
    await asyncio.to_thread(stage.start, name)


async def _until(
    talks: list[Talk], clients: "list[asyncio.Task[None]]", share: float, turns: int
) -> None:
    """Until that share of all answers was given."""
    while sum(len(talk.told) for talk in talks) < share * turns * len(talks):
        if all(client.done() for client in clients):
            return
        await asyncio.sleep(0.02)


def compare(talks: list[Talk], kept: list[Kept], turns: int) -> dict[str, Any]:
    """What the clients were told against what the gateway kept."""
    lost = doubled = drifted = unheard = 0
    resent: Counter[str] = Counter()
    for talk, session in zip(talks, kept, strict=True):
        resent += talk.resent
        lost += sum(told not in session.calls for told in talk.told)
        doubled += len(session.calls) - len(talk.told)
        unheard += sum(call not in talk.told for call in session.trained)
        drifted += sum(
            after[0][: len(before[0]) + len(before[1])] != before[0] + before[1]
            for before, after in zip(talk.told, talk.told[1:], strict=False)
        )
    answers = sum(len(talk.told) for talk in talks)
    return {
        "sessions": len(talks),
        "finished": sum(len(talk.told) == turns for talk in talks),
        "answers": answers,
        "lost": lost,
        "kept_but_never_delivered": doubled,
        "never_delivered_but_trained": unheard,
        "not_contiguous": drifted,
        "resent_by_clients": sum(resent.values()),
        "resent_why": dict(resent),
        "wrong_answers": [words for talk in talks for words in talk.wrong][:5],
    }


def measure(sessions: int, turns: int) -> dict[str, Any]:
    """Everything, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        stage = Stage(Path(scratch))
        try:
            for name in ("engine 0", "engine 1", "gateway"):
                stage.start(name)
            return asyncio.run(play(stage, sessions, turns))
        finally:
            stage.close()


def report(figures: dict[str, Any]) -> str:
    """The figures for people."""
    rows = {
        "conversations finished": f"{figures['finished']} of {figures['sessions']}",
        "answers given": figures["answers"],
        "given, but not in the capture": figures["lost"],
        "in the capture, but never delivered": figures["kept_but_never_delivered"],
        "never delivered, and yet trained": figures["never_delivered_but_trained"],
        "prompts that don't go on from the last call's tokens": figures["not_contiguous"],
        "calls the gateway sent to the other replica": figures["retried_on_another_replica"],
        "calls sent again by clients": f"{figures['resent_by_clients']} {figures['resent_why']}",
        "other errors": figures["wrong_answers"] or "none",
        "seconds": figures["wall_s"],
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one line of JSON for machines")
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--turns", type=int, default=12)
    options = parser.parse_args()
    figures = measure(options.sessions, options.turns)
    sys.stdout.write((json.dumps(figures) if options.json else report(figures)) + "\n")


if __name__ == "__main__":
    main()
