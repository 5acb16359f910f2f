"""Real rollouts of NeMo Gym's own environments: collected, validated, converted, judged again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlbridge.rollouts.collect import Pace
from rlbridge.rollouts.config import PlayConfig
from rlbridge.rollouts.rescore_run import Judge, RescoreRun
from rlbridge.rollouts.run import CollectRun
from rlbridge.testing import make_row
from rlbridge.testing.byte_tokenizer import ByteTokenizer
from rlbridge.testing.real_servers import running_nemo_gym, why_unavailable
from rlbridge.testing.vllm_server import VllmServer

pytestmark = [
    pytest.mark.nemo_gym,
    pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable() or "it is here"),
]

PACE = Pace(concurrency=4, attempts=2, backoff_s=0.05, timeout_s=180.0)


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def tool(name: str, /, **properties: str) -> dict[str, Any]:
    kinds = {key: {"type": kind} for key, kind in properties.items()}
    parameters = {"type": "object", "properties": kinds, "required": list(kinds)}
    return {"type": "function", "name": name, "description": name, "strict": True,
            "parameters": {**parameters, "additionalProperties": False}}  # fmt: skip


# Of each environment: a row, its tools, and what the policy says in turn.
ENVIRONMENTS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], list[str]]] = {
    "mcqa": (
        make_row(
            "Which letter?",
            options=[{"A": "this"}, {"B": "that"}],
            expected_answer="B",
            grading_mode="strict_single_letter_boxed",
            uuid="row-1",
        ),
        [],
        ["It is \\boxed{B}"],
    ),
    "math_with_judge": (
        make_row("1/2 + 1/4?", question="1/2 + 1/4?", expected_answer="0.75"),
        [],
        ["That is \\boxed{\\frac{3}{4}}"],
    ),
    "example_session_state_mgmt": (
        make_row("Count.", initial_count=3, expected_count=6),
        [tool("increment_counter", count="integer"), tool("get_counter_value")],
        [call("increment_counter", count=1), call("increment_counter", count=2), "It is 6."],
    ),
    "example_single_tool_call": (
        make_row("What is the weather in Rome?"),
        [tool("get_weather", city="string")],
        [call("get_weather", city="Rome"), "It is cold."],
    ),
    "workplace_assistant": (
        make_row(
            "Find Carlos.",
            id=1,
            ground_truth=[],
            category="workplace_assistant_email",
            environment_name="workplace_assistant",
        ),
        [tool("company_directory_find_email_address", name="string")],
        [call("company_directory_find_email_address", name="carlos"), "Found."],
    ),
}


def rlbridge(*arguments: str) -> str:
    command = [sys.executable, "-m", "rlbridge", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ENVIRONMENTS)
async def test_rollouts_of_real_environments_are_collected_validated_converted_and_judged_again(
    name: str, tmp_path: Path
) -> None:
    row, tools, texts = ENVIRONMENTS[name]
    row["responses_create_params"]["tools"] = tools
    rows, output = tmp_path / "rows.jsonl", tmp_path / "rollouts.jsonl"
    rows.write_text((json.dumps(row) + "\n") * 2)
    quiet = Console(quiet=True)

    def say(prompt: list[int]) -> str:
        so_far = ByteTokenizer().decode(prompt, skip_special_tokens=False)
        return texts[min(so_far.count("<tool_response>"), len(texts) - 1)]

    with running_nemo_gym(name) as gym:
        async with VllmServer(say, max_model_len=16384) as engine:
            play = PlayConfig(policy=engine.url, gym=gym)
            run = CollectRun(
                play, lambda _name: ByteTokenizer(), PACE, rows, output, quiet, repeats=2
            )
            summary = await run.execute()
        assert summary["failed"] == {}
        assert (summary["done"], summary["reward_mean"]) == (4, 1.0)
        assert summary["without_token_fields"] == 0
        judge = Judge(gym=gym, replay=bool(tools))
        again = await RescoreRun(judge, PACE, output, tmp_path / "again.jsonl", quiet).execute()
        assert again["verdicts"] == {"valid → same": 4}
    validated = json.loads(rlbridge("rollouts", "validate", str(output), "--for", "sft", "--json"))
    assert validated["rows"] == 4
    assert validated["turns"] == 4 * len(texts)
    rlbridge("transform", "sft", str(output), "-o", str(tmp_path / "sft.jsonl"))
    assert (tmp_path / "sft.jsonl").read_text().count('"messages"') >= 1
