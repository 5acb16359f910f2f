"""Asking an evaluator as a user configures it, for one answer."""

import asyncio
from collections.abc import Mapping
from typing import Any

from rlbridge.contracts.reward import Reward
from rlbridge.plugins import Plugins


def judged(name: str, row: Mapping[str, Any], answer: object, **options: Any) -> Reward:
    async def ask() -> Reward:
        evaluator = Plugins().evaluator(name, options)
        try:
            return await evaluator.verify(row, answer)
        finally:
            await evaluator.aclose()

    return asyncio.run(ask())


def value(reward: Reward) -> float:
    assert reward.valid, reward
    return reward.value
