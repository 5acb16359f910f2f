"""Gym's own rollout collection against a gateway; run by nemo-gym's Python, prints JSON lines.

Usage: gym_collect.py HOST PORT ROWS.jsonl. What `RolloutCollectionHelper` does here is what
`gym collect_rollouts` and NeMo-RL do: find the agent by name at the head server, post /run, and
read the answer with Gym's own model.
"""

import asyncio
import importlib
import json
import sys
from pathlib import Path
from typing import Any


async def collect(host: str, port: int, rows: list[dict[str, Any]]) -> None:
    """Play the rows and print each result, or the error it ended in."""
    config_types: Any = importlib.import_module("nemo_gym.config_types")
    collection: Any = importlib.import_module("nemo_gym.rollout_collection")
    agents: Any = importlib.import_module("responses_api_agents.simple_agent.app")
    head = config_types.BaseServerConfig(host=host, port=port)
    for future in collection.RolloutCollectionHelper().run_examples(rows, head):
        try:
            row, result = await future
        except Exception as error:  # noqa: BLE001 (the test looks at what Gym saw)
            print(json.dumps({"error": repr(error), "status": getattr(error, "status", None)}))
            continue
        checked = agents.SimpleAgentVerifyResponse.model_validate(result)
        print(json.dumps({"row": row, "result": checked.model_dump(mode="json")}))


def main() -> None:
    """Read the arguments."""
    rows = [json.loads(line) for line in Path(sys.argv[3]).read_text().splitlines()]
    sys.stdout.flush()
    asyncio.run(collect(sys.argv[1], int(sys.argv[2]), rows))


if __name__ == "__main__":
    main()
