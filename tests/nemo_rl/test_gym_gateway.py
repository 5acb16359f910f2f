"""NeMo-RL's Gym path with our gateway between Gym's agents and a fake of its vLLM server."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.lessons import RIGHT
from benchmarks.lessons import rows as lessons
from rlbridge.errors import ConfigError, RunError
from rlbridge.gateway.captures import captured_rollouts
from rlbridge.testing import ByteTokenizer
from rlbridge.testing.real_servers import why_unavailable
from rlbridge.testing.vllm_nemo_rl import Exact
from rlbridge.testing.vllm_server import VllmServer
from rlbridge_nemo_rl import versions
from rlbridge_nemo_rl.gym_flags import check
from rlbridge_nemo_rl.gym_gateway import GymGateway
from tests.nemo_rl.agents import MORE, USER, Agents, RunningAgent, hf_byte_tokenizer, running_agent
from tests.nemo_rl.conftest import Threaded

OURS = ByteTokenizer()
SAMPLING = {"temperature": 0.8, "top_p": 0.95}
GENERATION = {
    **SAMPLING, "top_k": None, "max_new_tokens": 64, "stop_strings": None, "stop_token_ids": None,
}  # fmt: skip


BOXED = "\\boxed{B}"


def answer(prompt: list[int]) -> str:
    text = OURS.decode(prompt)
    if RIGHT in text:
        return BOXED
    if "Do this" in text:
        return "A longer answer of a sub-agent, which trains more tokens than the others."
    return "Second." if "More" in text else "First."


@pytest.fixture
def engine() -> Iterator[VllmServer]:
    """NeMo-RL's server: its two routes, its asserts, its own splice."""
    fake = VllmServer(
        kind="nemo_rl", routes=frozenset({"chat"}), token_chat=False, exact=Exact(0.8, 0.95),
        message_fields=True, answers=answer,
    )  # fmt: skip
    running = Threaded(fake)
    yield fake
    running.close()


@pytest.fixture
def policy(engine: VllmServer) -> Any:
    """What NeMo-RL hands a rollout: its server has no URL when it is first asked."""

    class Generation:
        cfg = {"vllm_cfg": {"max_model_len": 512}}  # noqa: RUF012
        asked = 0

        @property
        def dp_openai_server_base_urls(self) -> list[str | None]:
            self.asked += 1
            return [None if self.asked < 3 else f"{engine.url}/v1"]

    return Generation()


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("bytes")
    made = hf_byte_tokenizer()
    made.save_pretrained(folder)
    return made, folder


@pytest.fixture
def gateway(byte_tokenizer: tuple[Any, Path], tmp_path: Path) -> Iterator[GymGateway]:
    made = GymGateway(
        tmp_path / "gym", model="tiny", tokenizer=str(byte_tokenizer[1]), ready_timeout_s=120,
        **SAMPLING,
    )  # fmt: skip
    yield made
    made.stop()


@pytest.mark.nemo_rl
def test_gyms_agents_roll_out_through_the_gateway(
    cluster: None,
    engine: VllmServer,
    policy: Any,
    gateway: GymGateway,
    byte_tokenizer: tuple[Any, Path],
) -> None:
    tokenizer, _ = byte_tokenizer
    actor = made_by_setup(gateway)
    assert engine.requests == []  # an engine that sleeps is not asked
    kinds = ["plain", "rewrites", "sub_agent", "no_metadata", "fails"]
    batch, out = rollout(policy, tokenizer, actor, kinds)

    assert batch["reward_valid"].tolist() == [True, True, True, True, False]
    assert batch["loss_multiplier"].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]
    logs = dict(zip(kinds, batch["message_log"], strict=True))
    first, second = {"role": "assistant", "content": "First."}, {"content": "Second."}
    whole = ids([USER, first, MORE, {"role": "assistant", **second}])[:-1]
    for kind in ("plain", "no_metadata"):
        assert [message["role"] for message in logs[kind]] == ["user", "assistant"] * 2
        assert tokens(logs[kind]) == whole
        assert sampled(logs[kind]) == ["First.<|im_end|>", "Second.<|im_end|>"]
    # A history that was rewritten and a sub-agent's are sequences of their own; see AllSequences.
    assert sampled(logs["rewrites"]) == ["First.<|im_end|>"]
    assert not any(text.startswith("A longer answer") for text in sampled(logs["sub_agent"]))
    assert tokens(logs["sub_agent"])[: len(ids([USER]))] == ids([USER])
    assert tokens(logs["sub_agent"])[:1] == [OURS.encode("<|im_start|>")[0]]
    assert out.rollout_metrics["gym/invalid"] == 1

    asked = len(engine.requests)
    assert all(body["temperature"] == 0.8 for body in engine.generations)
    prefixes = [body for body in engine.generations if "required_prefix_token_ids" in body]
    assert prefixes  # what was sampled is sent back as it was
    time.sleep(1.5)  # the gateway's looks at its engines come every half second
    assert len(engine.generations) <= asked
    assert list((gateway.folder / "calls").iterdir())  # every call is on disk


@pytest.mark.nemo_rl
def test_a_second_rollout_finds_the_engines_again(
    cluster: None,
    engine: VllmServer,
    policy: Any,
    gateway: GymGateway,
    byte_tokenizer: tuple[Any, Path],
) -> None:
    actor = made_by_setup(gateway)
    for _ in range(2):
        batch, _ = rollout(policy, byte_tokenizer[0], actor, ["plain", "plain"])
        assert batch["reward_valid"].tolist() == [True, True]


@pytest.mark.nemo_rl
@pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())
def test_gyms_own_agent_and_model_server_keep_the_session(
    cluster: None,
    engine: VllmServer,
    policy: Any,
    gateway: GymGateway,
    byte_tokenizer: tuple[Any, Path],
) -> None:
    """Gym 0.4.0's simple_agent, vllm_model and mcqa, in their own Python."""
    with running_agent(gateway.url, "mcqa") as url:
        actor = made_by_setup(gateway, url)
        rows = [{**row, "agent_ref": {"name": "a"}} for row in lessons()["mcqa"]]
        batch, _ = rollout(policy, byte_tokenizer[0], actor, rows=rows)
    assert batch["reward_valid"].tolist() == [True, True]
    assert batch["total_reward"].tolist() == [1.0, 0.0]
    for log, said in zip(batch["message_log"], (BOXED, "First."), strict=True):
        assert sampled(log) == [f"{said}<|im_end|>"]
    rollouts = list(captured_rollouts(gateway.folder / "calls"))
    assert [len(found.turns) for found in rollouts] == [1, 1]  # each in a session of its own


def made_by_setup(gateway: GymGateway, agent: str | None = None) -> Any:
    """The actor as NeMo-RL's `setup` makes it, but for Gym, which isn't in this environment."""
    import ray

    from rlbridge_nemo_rl.actor_behind import ActorBehind
    from rlbridge_nemo_rl.gym_agents import _Gym

    class WithoutGym(_Gym):
        def _spinup(self) -> None:
            self.rch = RunningAgent(agent) if agent else Agents(self.cfg["base_urls"][0])
            self.head_server_config = None

        def path(self) -> str:
            return os.environ["PYTHONPATH"]

    behind = ActorBehind(gateway, ray.remote(WithoutGym))
    actor = behind.options(num_cpus=0).remote({"base_urls": [None], "model_name": "tiny"})
    ray.get(actor._spinup.remote())
    # Another Python environment, as NeMo-RL's for Gym is, finds our packages.
    assert ray.get(actor.path.remote()).startswith(str(gateway.folder / "python"))
    return actor


def rollout(
    policy: Any, tokenizer: Any, actor: Any, kinds: Sequence[str] = (), rows: Any = None
) -> Any:
    """NeMo-RL's own Gym rollout, as a launcher that registered the gateway calls it."""
    import ray
    from nemo_rl.algorithms import grpo
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    rows = rows or [
        {"responses_create_params": {"input": [USER]}, "agent_ref": {"name": "a"}, "agent": kind}
        for kind in kinds
    ]
    batch = BatchedDataDict(extra_env_info=rows, loss_multiplier=torch.ones(len(rows)))
    roll_out = getattr(grpo, versions.gym_rollout())
    if hasattr(actor, "set_tokenizer"):
        ray.get(actor.set_tokenizer.remote(tokenizer))
    out = roll_out(
        policy_generation=policy, input_batch=batch, tokenizer=tokenizer,
        task_to_env={"nemo_gym": actor}, generation_config=GENERATION, max_seq_len=512,
        **versions.known(roll_out, {"log_full_result_tables": False}),
    )  # fmt: skip
    return out.final_batch, out


@pytest.fixture(autouse=True)
def through(request: pytest.FixtureRequest) -> Iterator[None]:
    """NeMo-RL as it is after `register(gateway=...)`; afterwards without a gateway again."""
    if "gateway" not in request.fixturenames or not request.node.get_closest_marker("nemo_rl"):
        yield
        return
    from rlbridge_nemo_rl import register
    from rlbridge_nemo_rl.gym_agents import _Gym

    if not hasattr(_Gym, "_spinup"):
        pytest.skip("v0.6's actor starts Gym as it is made, and Gym isn't in this environment")
    register(gateway=request.getfixturevalue("gateway"))
    assert all(hasattr(module.NemoGym, "options") for module in versions.gym_actor_modules())
    yield
    register()


def ids(messages: list[Any]) -> list[int]:
    found: list[int] = OURS.apply_chat_template(messages)
    return found


def tokens(log: Any) -> list[int]:
    return [int(token) for message in log for token in message["token_ids"]]


def sampled(log: Any) -> list[str]:
    return [
        OURS.decode(message["token_ids"].tolist())
        for message in log
        if message["role"] == "assistant"
    ]


def config(**changed: Any) -> Any:
    """A config that can run, but for what is changed, by dotted keys."""
    tree: dict[str, Any] = {
        "policy": {
            "model_name": "/models/p",
            "tokenizer": {"name": "/models/p"},
            "generation": {
                "backend": "vllm", **GENERATION,
                "vllm_cfg": {"async_engine": True, "expose_http_server": True},
            },
        },
        "grpo": {"max_val_samples": None, "async_grpo": {"enabled": False}},
        "env": {"should_use_nemo_gym": True},
    }  # fmt: skip
    for path, value in changed.items():
        *sections, last = path.split(".")
        at = tree
        for section in sections:
            at = at[section]
        at[last] = value
    return SimpleNamespace(**tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("env.should_use_nemo_gym", False),
        ("policy.generation.backend", "megatron"),
        ("policy.generation.vllm_cfg.async_engine", False),
        ("policy.generation.vllm_cfg.expose_http_server", False),
        ("policy.generation.vllm_cfg.skip_tokenizer_init", True),
        ("policy.generation.stop_strings", ["x"]),
        ("policy.generation.top_k", 5),
        ("grpo.max_val_samples", 8),
    ],
)
def test_a_flag_that_the_gym_path_needs_is_named(key: str, value: Any) -> None:
    check(config())
    with pytest.raises(ConfigError, match=f"^{key}"):
        check(config(**{key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("policy.generation.colocated", {"enabled": True}),
        ("env.nemo_gym", {"effort_levels": {"low_weight": 0.5}}),
    ],
)
def test_what_async_grpo_leaves_out_on_the_gym_path_is_named(key: str, value: Any) -> None:
    check(config(**{key: value}))
    asked = {"grpo.async_grpo.enabled": True}
    check(config(**asked))
    with pytest.raises(ConfigError, match=f"^{key}"):
        check(config(**asked, **{key: value}))


def test_a_gateway_of_a_config_has_its_exact_sampling(tmp_path: Path) -> None:
    mode = {"policy.generation.vllm_cfg.logprobs_mode": "processed_logprobs"}  # as in base configs
    gateway = GymGateway.of(config(**mode), tmp_path)
    assert gateway._config["policy"]["temperature"] == 0.8
    assert gateway._config["sampling"] == {"mode": "trainer", "max_tokens": 64, **SAMPLING}
    assert gateway.url.startswith("http://127.0.0.1:")


def test_engines_that_get_no_url_are_waited_for_and_named(tmp_path: Path) -> None:
    gateway = GymGateway(tmp_path, model="m", tokenizer="t", ready_timeout_s=0.5)
    with (
        pytest.raises(RunError, match="dp_openai_server_base_urls had no URL"),
        gateway.serving(lambda: [None]),
    ):
        pass
    gateway.stop()


def test_a_gateway_that_ended_is_named_with_its_log(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = GymGateway(tmp_path, model="m", tokenizer="t", port=port)
        with (
            pytest.raises(RunError, match=r"ended; see .*gateway\.log"),
            gateway.serving(lambda: ["http://127.0.0.1:9/v1"]),
        ):
            pass
    gateway.stop()
    assert "can't listen" in (tmp_path / "gateway.log").read_text()
