"""A gateway that answers sessions until it is killed; prints what its clients got."""

import asyncio
import sys
from pathlib import Path

import orjson

from rlbridge.gateway.config import GatewayConfig
from rlbridge.gateway.exchange import Caller, Reply
from rlbridge.gateway.gateway import Gateway
from tests.gateway.core_kit import TOKENIZER, ScriptedEngine


async def play(gateway: Gateway, name: str) -> None:
    messages = [{"role": "user", "content": f"Hello from {name}"}]
    for number in range(10_000):
        reply = await gateway.chat({"messages": messages}, Caller(name))
        assert isinstance(reply, Reply)
        message = orjson.loads(reply.body)["choices"][0]["message"]
        line = orjson.dumps([name, number, message["generation_token_ids"]]).decode()
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        messages += [
            {"role": "assistant", "content": message["content"]},
            {"role": "user", "content": f"Go on, {number}."},
        ]
        await asyncio.sleep(0)


async def main(folder: Path) -> None:
    config = GatewayConfig.parse({"capture": {"folder": folder, "fsync": "never"}})
    engine = ScriptedEngine()
    engine.answers.extend(f"Answer {number}." for number in range(10_000))
    async with Gateway(engine, TOKENIZER, config) as gateway:
        await asyncio.gather(*(play(gateway, f"s{number}") for number in range(5)))


asyncio.run(main(Path(sys.argv[1])))
