"""Gym's agents that run already: their gateways, who plays which rollout, rows they can't take."""

import importlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlbridge.errors import ConfigError
from rlbridge.testing import make_row
from rlbridge.testing.vllm_nemo_rl import Exact
from rlbridge.testing.vllm_server import VllmServer
from rlbridge_nemo_rl.agent_servers import AgentServers
from rlbridge_nemo_rl.gym_calls import AGENTS, CLIENT, GATEWAY
from tests.nemo_rl.agents import AgentServer, hf_byte_tokenizer
from tests.nemo_rl.conftest import Threaded
from tests.nemo_rl.test_gym_gateway import GENERATION, SAMPLING, config

URL = "http://127.0.0.1:8001"


@pytest.fixture
def ports() -> list[int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], other.getsockname()[1]]


def test_servers_of_one_port_share_a_gateway(tmp_path: Path, ports: list[int]) -> None:
    servers = [{"url": URL, "gateway_port": port} for port in (*ports, ports[0])]
    made = AgentServers.of(config(), tmp_path, servers, client={"run_timeout_s": 9.0})
    told = made.actor_config()
    asked = [agent[GATEWAY] for agent in told[AGENTS]]
    assert asked == [f"http://127.0.0.1:{port}" for port in (*ports, ports[0])]
    assert told[CLIENT] == {"run_timeout_s": 9.0}
    assert told["base_urls"] == []


def test_a_port_that_is_taken_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = AgentServers.of(config(), tmp_path, [{"url": URL, "gateway_port": port}])
        with pytest.raises(ConfigError, match=f"^agent.servers: gateway_port {port} is taken"):
            made.start()


def test_a_key_of_a_server_that_is_misspelt_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent\.servers: .*did you mean 'gateway_port'"):
        AgentServers.of(config(), tmp_path, [{"url": URL, "gateway_prt": 8100}])


@pytest.fixture
def stack(ports: list[int]) -> Iterator[tuple[list[AgentServer], list[str], VllmServer]]:
    """Two agents, each of which asks at a port of its own, and an engine."""
    engine = VllmServer(
        kind="nemo_rl", routes=frozenset({"chat"}), token_chat=False, exact=Exact(0.8, 0.95)
    )
    agents = [AgentServer(f"http://127.0.0.1:{port}", lambda _: "plays") for port in ports]
    running = [Threaded(server) for server in (*agents, engine)]
    yield agents, [one.url for one in running[:2]], engine
    for one in running:
        one.close()


@pytest.mark.nemo_rl
def test_rollouts_of_whatever_batch_go_round_the_servers_and_each_by_its_own_gateway(
    cluster: None, stack: Any, ports: list[int], tmp_path: Path
) -> None:
    import ray
    from nemo_rl.algorithms import grpo
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    from rlbridge_nemo_rl import register

    agents, urls, engine = stack
    tokenizer = hf_byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "policy")
    given = config(**{"policy.model_name": "tiny", "policy.tokenizer.name": tmp_path / "policy"})
    servers = [{"url": url, "gateway_port": p} for url, p in zip(urls, ports, strict=True)]
    between = AgentServers.of(given, tmp_path / "gym", servers)
    register(gateway=between)
    try:
        made = importlib.import_module("nemo_rl.algorithms.grpo").NemoGym
        actor = made.options(num_cpus=0).remote({"base_urls": [None], "model_name": "tiny"})
        ray.get(actor._spinup.remote())
        rows = [{**make_row(f"question {n}"), "agent_ref": {"name": "a"}} for n in range(4)]
        policy = SimpleNamespace(
            cfg={"vllm_cfg": {"max_model_len": 512}},
            dp_openai_server_base_urls=[f"{engine.url}/v1"],
        )
        valid: list[bool] = []
        for part in (rows[:3], rows[3:]):
            batch = BatchedDataDict(extra_env_info=part, loss_multiplier=torch.ones(len(part)))
            out = grpo.run_async_nemo_gym_rollout(
                policy_generation=policy,
                input_batch=batch,
                tokenizer=tokenizer,
                task_to_env={"nemo_gym": actor},
                generation_config=GENERATION,
                max_seq_len=512,
            )
            valid += out.final_batch["reward_valid"].tolist()
    finally:
        between.stop()
        register()
    assert valid == [True] * 4
    texts = [
        [run["responses_create_params"]["input"][0]["content"] for run in agent.runs]
        for agent in agents
    ]
    assert [sorted(own) for own in texts] == [
        ["question 0", "question 2"],
        ["question 1", "question 3"],
    ]
    for port in ports:  # what an agent asked was captured by the gateway at its port
        calls = tmp_path / "gym" / f"gateway-{port}" / "calls"
        assert any(path.stat().st_size for path in calls.rglob("*") if path.is_file())
    assert all(body["temperature"] == SAMPLING["temperature"] for body in engine.generations)


def master(tmp_path: Path, rows: list[dict[str, Any]], limit: int = 200) -> Any:
    """What `data_of` reads of a `MasterConfig`."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"dataset_name": "rlbridge_nemo_rl.GymAgentDataset", "agent": "gym_agent"}
    return SimpleNamespace(
        data={
            "train": {**dataset, "data_path": str(path)},
            "validation": {**dataset, "data_path": str(path), "split": "validation"},
            "default": {"processor": "nemo_gym_data_processor", "env_name": "nemo_gym"},
            "max_input_seq_length": limit,
        },
        grpo={"max_val_samples": None, "val_batch_size": None},
    )


@pytest.mark.nemo_rl
def test_all_validation_rows_are_one_batch(tmp_path: Path) -> None:
    from rlbridge_nemo_rl.agent_training import data_of

    given = master(tmp_path, [make_row("a"), make_row("b")])
    dataset, _ = data_of(given, hf_byte_tokenizer(), one_agent=True)
    assert given.grpo == {"max_val_samples": 2, "val_batch_size": 2}
    assert dataset[0]["extra_env_info"]["agent_ref"]["name"] == "gym_agent"


@pytest.mark.nemo_rl
@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {**make_row("b"), "agent_ref": {"name": "other"}},
            r"^agent\.servers: rows name 2 agents: .*other \(.*rows\.jsonl:2\)",
        ),
        (make_row("long " * 60), r"1 of 2 prompts are longer .* the first at .*rows\.jsonl:2"),
    ],
    ids=["another_agent", "overlong"],
)
def test_rows_that_the_agents_cannot_take_are_refused_by_line(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    from rlbridge_nemo_rl.agent_training import data_of

    given = master(tmp_path, [make_row("a"), row])
    given.data["validation"] = None
    with pytest.raises(ConfigError, match=words):
        data_of(given, hf_byte_tokenizer(), one_agent=True)
