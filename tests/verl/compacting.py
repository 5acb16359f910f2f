"""A Gym agent that rewrites its history before each call, as one that compacts its context."""

from collections import Counter
from collections.abc import Sequence

import httpx
import orjson

from rlbridge.testing.exchange import Exchange, LocalServer


class CompactingAgent(LocalServer):
    """Serves `/run`; the calls of a rollout share no history, so each is a trajectory.

    Args:
        policy_port: of the gateway on 127.0.0.1.
        plans: calls and reward of a row's first rollout, of its second, and so on, over and over.
    """

    def __init__(self, policy_port: int, plans: Sequence[tuple[int, float]]) -> None:
        super().__init__()
        self._policy = f"http://127.0.0.1:{policy_port}/v1/chat/completions"
        self._plans = plans
        self._seen: Counter[str] = Counter()

    async def answer(self, exchange: Exchange) -> bool:
        if exchange.route != "/run":
            return await exchange.send(404, {"detail": "only /run"})
        params = orjson.loads(exchange.raw)["responses_create_params"]
        question = params["input"][-1]["content"]
        calls, reward = self._plans[self._seen[question] % len(self._plans)]
        self._seen[question] += 1
        said = ""
        async with httpx.AsyncClient(timeout=120) as client:
            for _ in range(calls):
                text = f"So far: {said} {question}" if said else question
                body = {
                    "model": "policy",
                    "messages": [{"role": "user", "content": text}],
                    "metadata": params["metadata"],
                }
                reply = (await client.post(self._policy, json=body)).raise_for_status()
                said = reply.json()["choices"][0]["message"]["content"] or "nothing"
        return await exchange.send(200, {"reward": reward})
