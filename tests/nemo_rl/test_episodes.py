"""Sessions of the rollouts under way; nothing here needs NeMo-RL."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlbridge.config import GymConfig
from rlbridge.testing import make_row
from rlbridge_nemo_rl.episodes import SESSION, Episodes, Gyms, Outcome
from rlbridge_nemo_rl.processor import ROW

TOOL = {"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'


def test_sessions_that_nobody_goes_on_with_are_forgotten_and_no_others(
    policy_folder: Path, gym: Callable[..., Any]
) -> None:
    now = 0.0
    server = gym(tools={"add": lambda *_: {"sum": 1}})
    row = make_row("add")
    row["responses_create_params"]["tools"] = [TOOL]
    config: Any = SimpleNamespace(
        policy=str(policy_folder), max_turns=9, max_tool_output_chars=99, parallel_tool_calls=False
    )

    async def play() -> list[Outcome]:
        gyms = Gyms(GymConfig(url=server.url), {})
        episodes = Episodes(gyms, config, lambda: now)

        async def turn(text: str, state: Any = None) -> Outcome:
            nonlocal now
            now += 3600.0
            return await episodes.turn([{"content": text}], {ROW: row, **(state or {})})

        idle, used = await turn(CALL), await turn(CALL)
        used = await turn(CALL, used.state)
        await turn(CALL)  # at its third hour the first one is forgotten
        assert len({idle.state[SESSION], used.state[SESSION]}) == 2
        ends = [await turn("Done.", idle.state), await turn("Done.", used.state)]
        await gyms.aclose()
        return ends

    lost, went_on = asyncio.run(play())
    assert lost.reward is not None
    assert "waited 2 hours" in getattr(lost.reward, "detail", "")
    assert went_on.reward is not None
    assert went_on.reward.valid
