"""Our environment inside NeMo-RL's own rollouts: create_env, sync and async, one turn and many."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlbridge.testing import FaultKind, Faults, make_row
from rlbridge_nemo_rl.processor import INDEX, SPLIT

pytestmark = [pytest.mark.nemo_rl, pytest.mark.usefixtures("registered")]

LENGTH = 400
TOOL = {
    "type": "function",
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"n": 2}}\n</tool_call>'


def create(url: str, **config: Any) -> Any:
    from nemo_rl.environments.utils import create_env

    fast = {"url": url, "max_attempts": 1, "total_timeout_s": 10.0}
    return create_env("rlbridge_gym", fast | config)


def batch(tokenizer: Any, tmp_path: Path, rows: list[dict[str, Any]], group: int = 1) -> Any:
    """Rows as the trainer's data loader makes them, each `group` times."""
    from nemo_rl.data.collate_fn import rl_collate_fn

    from rlbridge_nemo_rl import GymDataset

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = GymDataset(str(path))
    items = [
        {**_processed(dataset, tokenizer, i), "task_name": "gym"}
        for i in range(len(dataset.dataset))
    ]
    return rl_collate_fn(items).repeat_interleave(group)


def _processed(dataset: Any, tokenizer: Any, index: int) -> Any:
    dataset.set_task_spec({})
    dataset.set_processor()
    return dataset.processor(dataset.dataset[index], dataset.task_spec, tokenizer, LENGTH, index)


def restart(env: Any) -> None:
    """Kill the actor's process and wait for its death, of which Ray's kill only gives notice."""
    import ray

    ray.kill(env, no_restart=False)
    deadline = time.monotonic() + 60
    while ray._private.state.actors(env._actor_id.hex())["NumRestarts"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run(kind: str, *arguments: Any, **options: Any) -> Any:
    from nemo_rl.algorithms import grpo

    return getattr(grpo, kind)(*arguments, max_seq_len=LENGTH, **options)


both = pytest.mark.parametrize("kind", ["run_multi_turn_rollout", "run_async_multi_turn_rollout"])


@both
def test_rewards_come_from_the_gym(
    kind: str, tokenizer: Any, tmp_path: Path, gym: Callable[..., Any]
) -> None:
    from tests.nemo_rl.policies import scripted

    server = gym(rewards=lambda body: float(body["expected"] in _said(body)))
    rows = [make_row(f"q{i}", expected=str(i)) for i in range(3)]
    policy = scripted(tokenizer, lambda text, _: "1" if "q2" not in text else "2")
    out, _ = run(
        kind, policy, batch(tokenizer, tmp_path, rows), tokenizer, {"gym": create(server.url)}
    )
    assert out["total_reward"].tolist() == [0.0, 1.0, 1.0]
    assert out["reward_valid"].tolist() == [True] * 3
    assert out["loss_multiplier"].tolist() == [1.0] * 3
    assert [[m["role"] for m in log] for log in out["message_log"]] == [
        ["user", "assistant", "environment"]
    ] * 3


@both
def test_a_reward_that_is_missing_masks_its_row_and_shifts_no_baseline(
    kind: str, tokenizer: Any, tmp_path: Path, gym: Callable[..., Any]
) -> None:
    from tests.nemo_rl.policies import scripted

    answers = iter(["good", "bad", "none", "good"] * 2)
    scores = {"good": 1.0, "bad": 0.0, "none": {"reward": None}}
    server = gym(rewards=lambda body: scores[_said(body)])
    policy = scripted(tokenizer, lambda *_: next(answers))
    data = batch(tokenizer, tmp_path, [make_row("q0"), make_row("q1")], group=4)
    out, _ = run(kind, policy, data, tokenizer, {"gym": create(server.url)})
    assert out["reward_valid"].tolist() == [True, True, False, True] * 2
    assert out["loss_multiplier"].tolist() == [1.0, 1.0, 0.0, 1.0] * 2
    assert out["total_reward"].tolist() == pytest.approx([1, 0, 2 / 3, 1] * 2)


@both
def test_tools_are_answered_in_a_session_over_several_turns(
    kind: str, tokenizer: Any, tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    from tests.nemo_rl.policies import scripted

    sums: dict[str, int] = {}

    def add(session: str, arguments: dict[str, Any]) -> dict[str, Any]:
        sums[session] = sums.get(session, 0) + arguments["n"]
        return {"sum": sums[session]}

    server = gym(tools={"add": add}, rewards=lambda body: float("4" in _said(body)))
    row = make_row("add 2 twice")
    row["responses_create_params"]["tools"] = [TOOL]
    policy = scripted(tokenizer, lambda text, _: "It is 4." if '{"sum":4}' in text else CALL)
    env = create(server.url, policy=str(policy_folder), max_turns=5)
    data = batch(tokenizer, tmp_path, [row, row])
    out, _ = run(kind, policy, data, tokenizer, {"gym": env}, max_rollout_turns=5)
    assert out["total_reward"].tolist() == [1.0, 1.0]
    assert sorted(sums.values()) == [4, 4]  # a session each
    text = tokenizer.decode([i for m in out["message_log"][0] for i in m["token_ids"].tolist()])
    prompt = out["message_log"][0][0]["content"]
    seen = "<|im_end|>\n<|im_start|>tool\n{}<|im_end|>\n<|im_start|>assistant\n"
    turns = [CALL, seen.format('{"sum":2}'), CALL, seen.format('{"sum":4}'), "It is 4.<|im_end|>"]
    assert text == prompt + "".join(turns)


@both
def test_a_turn_cut_in_the_middle_of_a_rollout_masks_it_in_either_kind(
    kind: str, tokenizer: Any, tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    from tests.nemo_rl.policies import CUT, scripted

    server = gym(tools={"add": lambda *_: {"sum": 4}})
    rows = [make_row("add, cut"), make_row("add, whole")]
    for row in rows:
        row["responses_create_params"]["tools"] = [TOOL]

    def answer(text: str, _: int) -> str:
        if '{"sum":4}' in text:  # a last turn that is cut has a verdict all the same
            return "It is 4." + CUT
        return CALL + (CUT if ", cut" in text else "")

    env = create(server.url, policy=str(policy_folder), max_turns=5)
    data = batch(tokenizer, tmp_path, rows)
    out, _ = run(kind, scripted(tokenizer, answer), data, tokenizer, {"gym": env})
    assert out["truncated"].tolist() == [True, True]
    assert out["reward_valid"].tolist() == [False, True]
    assert out["loss_multiplier"].tolist() == [0.0, 1.0]


def test_a_rollout_cut_before_its_verdict_has_no_reward(
    tokenizer: Any, tmp_path: Path, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    from tests.nemo_rl.policies import scripted

    server = gym(tools={"add": lambda *_: {"sum": 1}})
    row = make_row("add for ever")
    row["responses_create_params"]["tools"] = [TOOL]
    env = create(server.url, policy=str(policy_folder), max_turns=9)
    data = batch(tokenizer, tmp_path, [row])
    out, _ = run(
        "run_multi_turn_rollout", scripted(tokenizer, lambda *_: CALL), data, tokenizer,
        {"gym": env}, max_rollout_turns=2,
    )  # fmt: skip
    assert out["reward_valid"].tolist() == [False]
    assert out["loss_multiplier"].tolist() == [0.0]


def test_a_failed_generation_is_no_reward_of_zero(
    tokenizer: Any, tmp_path: Path, gym: Callable[..., Any]
) -> None:
    from tests.nemo_rl.policies import scripted

    server = gym(rewards=1.0)
    policy = scripted(tokenizer, lambda text, _: None if "q1" in text else "x")
    data = batch(tokenizer, tmp_path, [make_row("q0"), make_row("q1")])
    env = create(server.url)
    out, _ = run("run_async_multi_turn_rollout", policy, data, tokenizer, {"gym": env})
    assert out["reward_valid"].tolist() == [True, False]
    assert out["total_reward"].tolist() == [1.0, 1.0]


def test_an_overlong_prompt_is_masked_and_nobody_is_asked(
    tokenizer: Any, tmp_path: Path, gym: Callable[..., Any]
) -> None:
    from tests.nemo_rl.policies import scripted

    server = gym(rewards=1.0)
    data = batch(tokenizer, tmp_path, [make_row("q " * 600), make_row("q")])
    assert data["loss_multiplier"].tolist() == [0.0, 1.0]
    env = create(server.url)
    out, _ = run(
        "run_multi_turn_rollout", scripted(tokenizer, lambda *_: "x"), data, tokenizer, {"gym": env}
    )
    assert server.behaviour.verifies == 1
    assert out["loss_multiplier"].tolist() == [0.0, 1.0]


def test_a_restarted_actor_answers_again_and_disowns_its_sessions(
    tokenizer: Any, policy_folder: Path, gym: Callable[..., Any]
) -> None:
    import ray

    server = gym(tools={"add": lambda *_: {"sum": 1}})
    env = create(server.url, policy=str(policy_folder), max_turns=9)
    row = make_row("add")
    row["responses_create_params"]["tools"] = [TOOL]
    log = [{"role": "user", "content": "add"}, {"role": "assistant", "content": CALL}]
    first = ray.get(env.step.remote([log], [{"row": row}]))
    assert first.terminateds.tolist() == [False]
    restart(env)
    again = ray.get(env.step.remote([log], [first.metadata[0]]), timeout=120)
    assert again.metadata[0]["verdict"]["failure"] == "lost_session"
    assert again.rewards.isnan().tolist() == [True]
    plain = ray.get(env.step.remote([log], [{"row": make_row("q")}]))
    assert plain.rewards.tolist() == [1.0]


def test_a_restarted_actor_knows_its_step_and_asks_only_for_what_it_had_not_judged(
    tmp_path: Path, gym: Callable[..., Any]
) -> None:
    import ray

    server = gym(faults=Faults(script=[None, FaultKind.SLOW]), rewards=[0.25, 0.5])
    ledger = tmp_path / "rewards"
    env = create(server.url, ledger=str(ledger), max_concurrency=1, deterministic=False)
    ray.get(env.set_step.remote(7))
    infos = [{"row": make_row(f"q{n}"), INDEX: n, SPLIT: "train"} for n in range(2)]
    logs = [[{"role": "assistant", "content": f"a{n}"}] for n in range(2)]
    asked = env.step.remote(logs, infos)
    while not any(path.stat().st_size for path in ledger.glob("*.jsonl")):
        assert not ray.wait([asked], timeout=0.05)[0]
    ray.kill(env, no_restart=False)
    assert ray.get(asked, timeout=120).rewards.tolist() == [0.25, 0.5]
    lines = [json.loads(line) for path in ledger.glob("*.jsonl") for line in path.open()]
    assert sorted((line["step"], line["row"]) for line in lines) == [(7, 0), (7, 1)]
    assert server.behaviour.verifies == 3  # the second one twice: nobody heard the first answer
    _, metrics = ray.get(env.global_post_process_and_metrics.remote({}))
    assert metrics["gym/valid"] == 2


def test_metrics_say_what_became_of_the_rewards(gym: Callable[..., Any]) -> None:
    import ray

    server = gym(rewards=[1.0, {"reward": None}])
    env = create(server.url, deterministic=False)
    log = [{"role": "assistant", "content": "x"}]
    ray.get(env.step.remote([log, log], [{"row": make_row("q")}] * 2))
    _, metrics = ray.get(env.global_post_process_and_metrics.remote({}))
    assert metrics["gym/valid"] == 1.0
    assert metrics["gym/invalid/missing_reward"] == 1.0


def test_a_wrong_key_is_named() -> None:
    from rlbridge.errors import ConfigError
    from rlbridge_nemo_rl.environment import parse_config

    with pytest.raises(ConfigError, match=r"env\.rlbridge_gym: verify_timeout: .*verify_timeout_s"):
        parse_config({"verify_timeout": 3})


def _said(body: dict[str, Any]) -> str:
    return str(body["response"]["output"][-1]["content"][0]["text"])
