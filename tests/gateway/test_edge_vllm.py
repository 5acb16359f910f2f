"""On a real vLLM: no drift under re-encoding, and Gym's own agents get what they get directly."""

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.gateway_contenders import running_gateway
from benchmarks.lessons import COUNT, COUNTER_TOOLS, chat_tools, rows
from benchmarks.tiny_model import TOOLS, words
from rlbridge.testing.real_servers import SERVERS, nemo_gym_python, why_unavailable

pytestmark = [
    pytest.mark.vllm,
    # Loading torch and transformers warns of things of their own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TESTING = Path("rlbridge/testing").absolute()


@pytest.fixture(scope="module")
def gateway(
    taught_vllm: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    url, model = taught_vllm
    captures = tmp_path_factory.mktemp("captures")
    with running_gateway(url, model, captures) as running:
        yield running.url


def test_six_tool_turns_whose_text_is_rewritten_each_turn_have_no_drift(gateway: str) -> None:
    turns = 0
    with httpx.Client(timeout=120) as http:
        for seed in range(6):
            rng = random.Random(seed)
            first = COUNT if seed % 2 else words(rng, 3, 10)
            messages: list[dict[str, Any]] = [{"role": "user", "content": first}]
            before: list[int] = []
            for _ in range(6):
                body = {"model": "tiny", "messages": messages, "max_tokens": 64,
                        "tools": [*TOOLS, *chat_tools(COUNTER_TOOLS)]}  # fmt: skip
                answer = http.post(f"{gateway}/s/d{seed}/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                message = answer.json()["choices"][0]["message"]
                prompt = message["prompt_token_ids"]
                assert prompt[: len(before)] == before
                before = prompt + message["generation_token_ids"]
                turns += 1
                messages = [*_rewritten(messages, rng), _rewrite(message, rng)]
                messages += _next(message, rng)
            document = http.get(f"{gateway}/s/d{seed}/rollout").json()
            assert len(document["sequences"]) == 1
    assert turns == 36


def _rewritten(messages: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    return [
        _rewrite(message, rng) if message["role"] == "assistant" else message
        for message in messages
    ]


def _rewrite(message: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same answer in another encoding: JSON spacing, white space at the ends, no tokens."""
    again: dict[str, Any] = {"role": "assistant"}
    content = message.get("content")
    again["content"] = content and rng.choice(["", " ", "\n"]) + content.strip() + rng.choice(
        ["", "\n\n"]
    )
    if message.get("tool_calls"):
        again["tool_calls"] = [_rewrite_call(call, rng) for call in message["tool_calls"]]
    if message.get("reasoning") and rng.random() < 0.5:
        again["reasoning_content"] = message["reasoning"]
    return again


def _rewrite_call(call: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    function = call["function"]
    try:
        parsed = json.loads(function["arguments"])
    except ValueError:
        return call
    separators = rng.choice([(",", ":"), (", ", ": "), (" , ", " : ")])
    arguments = json.dumps(parsed, separators=separators, ensure_ascii=rng.random() < 0.5)
    return {**call, "function": {**function, "arguments": arguments}}


def _next(message: dict[str, Any], rng: random.Random) -> list[dict[str, Any]]:
    calls = message.get("tool_calls") or []
    if calls:
        return [
            {"role": "tool", "tool_call_id": call["id"], "content": words(rng, 1, 5)}
            for call in calls
        ]
    return [{"role": "user", "content": words(rng, 3, 10)}]


@pytest.mark.nemo_gym
def test_gyms_agents_get_contiguous_tokens_and_the_rewards_of_a_direct_run(
    gateway: str, taught_vllm: tuple[str, Path]
) -> None:
    if why_unavailable():
        pytest.skip(why_unavailable())
    tasks = rows()
    spec = {
        "build": str(TESTING),
        "resources": {name: SERVERS[name] for name in tasks},
        "models": {"direct": f"{taught_vllm[0]}/v1", "gateway": f"{gateway}/v1"},
        "model": "tiny",
    }
    script = Path(__file__).with_name("gym_stack.py")
    command = [str(nemo_gym_python()), str(script), json.dumps(spec)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stack:
        assert stack.stdout is not None
        assert stack.stdin is not None
        line = next((text for text in stack.stdout if text.startswith("{")), "")
        assert line, "the stack did not start"
        addresses = json.loads(line)
        rewards: dict[str, list[float]] = {"direct": [], "gateway": []}
        called = 0
        for name, server in tasks.items():
            for row in server:
                for way, seen in rewards.items():
                    result = _run(addresses[f"{name}/{way}"], row)
                    seen.append(result["reward"])
                    if way == "gateway":
                        _check_contiguous(result["response"]["output"])
                    called += sum(
                        item["type"] == "function_call_output"
                        for item in result["response"]["output"]
                    )
        stack.stdin.close()
        stack.wait(30)
    assert rewards["gateway"] == rewards["direct"]
    assert rewards["gateway"] == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert called == 6  # counter twice and weather, both ways


def _run(address: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    url = f"http://{address['host']}:{address['port']}/run"
    answer = httpx.post(url, json=row, timeout=120)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _check_contiguous(output: list[dict[str, Any]]) -> None:
    """As NeMo-RL asserts: each prompt starts with all tokens seen so far."""
    seen: list[int] = []
    calls = [item for item in output if item.get("generation_token_ids")]
    assert calls
    for item in calls:
        assert item["prompt_token_ids"][: len(seen)] == seen
        assert len(item["generation_token_ids"]) == len(item["generation_log_probs"])
        seen = item["prompt_token_ids"] + item["generation_token_ids"]


@pytest.mark.nemo_gym
def test_the_gateways_own_agent_gets_the_same_rewards(taught_vllm: tuple[str, Path]) -> None:
    if why_unavailable():
        pytest.skip(why_unavailable())
    from rlbridge.testing.real_servers import running_nemo_gym

    url, model = taught_vllm
    name = "example_session_state_mgmt"
    with (
        running_nemo_gym(name) as gym,
        running_gateway(url, model, model.parent / "own", "--gym", gym) as running,
    ):
        results = [
            httpx.post(f"{running.url}/run", json=row, timeout=120).json() for row in rows()[name]
        ]
        lost = httpx.post(f"{running.url}/run", json={**rows()[name][0], "initial_count": "x"})
    assert [result["reward"] for result in results] == [1.0, 0.0]
    for result in results:
        _check_contiguous(result["response"]["output"])
    assert lost.status_code == 422
    assert lost.json()["error"]["code"] == "invalid_reward_bad_row"
