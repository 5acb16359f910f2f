"""A gateway that answers sessions until it is killed; prints what its clients got.

`core_killed.py FOLDER` plays five sessions without end. `core_killed.py FOLDER TURNS` plays
conversations of so many turns in small segments; each player's first session stays open, the
others end, which is printed too.
"""

import asyncio
import itertools
import sys
from pathlib import Path
from typing import Any

import orjson

from rlbridge.gateway.config import GatewayConfig
from rlbridge.gateway.exchange import Caller, Reply
from rlbridge.gateway.gateway import Gateway
from tests.gateway.core_kit import TOKENIZER, ScriptedEngine


def say(*what: Any) -> None:
    sys.stdout.write(orjson.dumps(what).decode() + "\n")
    sys.stdout.flush()


async def play(gateway: Gateway, name: str, turns: int) -> None:
    messages = [{"role": "user", "content": f"Hello from {name}"}]
    for number in range(turns):
        reply = await gateway.chat({"messages": messages}, Caller(name))
        assert isinstance(reply, Reply)
        message = orjson.loads(reply.body)["choices"][0]["message"]
        say(name, number, message["generation_token_ids"])
        messages += [
            {"role": "assistant", "content": message["content"]},
            {"role": "user", "content": f"Go on, {number}."},
        ]
        await asyncio.sleep(0)


async def play_on(gateway: Gateway, player: int, turns: int) -> None:
    for number in itertools.count():
        name = f"s{player}-{number}"
        await play(gateway, name, turns)
        if number:
            await gateway.end_session(name)
            say(name, "end", [])
        await asyncio.sleep(0.01)


async def main(folder: Path, turns: int | None) -> None:
    capture = {"folder": folder, "fsync": "never", "segment_mb": 256 if turns is None else 0.02}
    engine = ScriptedEngine()
    engine.answers.extend(f"Answer {number}." for number in range(10_000))
    async with Gateway(engine, TOKENIZER, GatewayConfig.parse({"capture": capture})) as gateway:
        if turns is None:
            await asyncio.gather(*(play(gateway, f"s{number}", 10_000) for number in range(5)))
        else:
            await asyncio.gather(*(play_on(gateway, number, turns) for number in range(5)))


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
