"""The real `grpo_train` through our driver where Gym's agents roll out: `agent.loop: run`."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.lessons import RIGHT, WRONG
from benchmarks.lessons import rows as lessons
from rlbridge.errors import PluginError
from rlbridge.testing import make_row
from rlbridge.testing.real_servers import why_unavailable
from tests.nemo_rl.agents import AgentServer, hf_byte_tokenizer, running_agent
from tests.nemo_rl.conftest import Threaded
from tests.nemo_rl.test_nemo_rl_async import ledger_of
from tests.nemo_rl.test_nemo_rl_training import STEPS, steps_of, train

pytestmark = [pytest.mark.nemo_rl, pytest.mark.usefixtures("cluster")]

ROLLOUT = {"prompts_per_step": 2, "samples_per_prompt": 8, "max_response_tokens": 12}
PLAYED = 16


@pytest.fixture(scope="module")
def byte_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy's folder with the tokenizer that our fake engine has."""
    folder = tmp_path_factory.mktemp("bytes")
    hf_byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def launchable() -> None:
    from rlbridge_nemo_rl.gym_flags import check_installed

    try:
        check_installed()
    except PluginError as error:
        pytest.skip(str(error))


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def played(
    folder: Path, policy: Path, rows: list[dict[str, Any]], agent: str, port: int, **more: Any
) -> Any:
    """Train on rows that an agent plays, which asks us at a port."""
    servers = [{"url": agent, "gateway_port": port}]
    return train(
        folder, policy, rows, "", "gym_driver_on_cpu",
        gym={}, agent={"loop": "run", "servers": servers}, rollout=ROLLOUT, **more,
    )  # fmt: skip


def trained_of(folder: Path) -> Any:
    return json.loads((folder / "run" / "trained.json").read_text())


@pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())
def test_grpo_trains_on_what_gyms_own_agent_sampled_through_our_gateway(
    tmp_path: Path, byte_policy: Path, port: int
) -> None:
    """Gym 0.4.0's simple_agent, vllm_model and mcqa; the policy's own tokens and logprobs."""
    rows = lessons()["mcqa"]
    validation = tmp_path / "validation.jsonl"
    validation.write_text(json.dumps(rows[0]) + "\n")
    data = {"train": str(tmp_path / "rows.jsonl"), "validation": str(validation)}
    trainer = {"steps": STEPS, "output_dir": str(tmp_path / "run"), "validate_every": STEPS}
    with running_agent(f"http://127.0.0.1:{port}", "mcqa", model="policy") as agent:
        done = played(
            tmp_path, byte_policy, rows, agent, port,
            data=data | {"max_prompt_tokens": 64}, trainer=trainer,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    trained = trained_of(tmp_path)
    assert trained["moved"] > 0
    assert len(trained["steps"]) == STEPS
    sampled = json.loads((tmp_path / "run" / "sampled.json").read_text())
    assert len(sampled) == STEPS * PLAYED + 1  # and one to validate
    for number, step in enumerate(trained["steps"]):
        assert_trained_as_sampled(step, sampled[number * PLAYED : (number + 1) * PLAYED])

    steps = steps_of(tmp_path)
    assert [step.native["train/gym/valid"] for step in steps] == [PLAYED] * STEPS
    assert steps[-1].native["validation/gym/valid"] == 1
    ledger = ledger_of(tmp_path)
    assert {line["reward"] for line in ledger} == {0.0, 1.0}  # the verifier's, of both answers
    played_rows = [(line["step"], line["row"], line["sample"]) for line in ledger[:-1]]
    assert sorted(played_rows) == [
        (step, row, sample) for step in (1, 2, 3) for row in (0, 1) for sample in range(8)
    ]
    assert [line["split"] for line in ledger] == [*["train"] * STEPS * PLAYED, "validation"]
    with pytest.raises(ConnectionRefusedError):  # the gateway is gone
        socket.create_connection(("127.0.0.1", port))


def assert_trained_as_sampled(step: dict[str, Any], sampled: list[dict[str, Any]]) -> None:
    """Each row trains exactly one answer of the engine's, with its logprobs and its advantage."""
    wanted = {tuple(one["prompt"] + one["token_ids"]): one for one in sampled}
    found = []
    by_prompt: dict[bool, dict[bool, set[float]]] = {}
    for row, length in enumerate(step["input_lengths"]):
        ids = step["input_ids"][row][:length]
        one = wanted[tuple(ids)]
        found.append(tuple(ids))
        count = len(one["token_ids"])
        assert step["token_mask"][row][:length] == [0] * len(one["prompt"]) + [1] * count
        given = torch.tensor(step["generation_logprobs"][row][length - count : length])
        assert torch.allclose(given, torch.tensor(one["logprobs"]), atol=1e-5)
        own = torch.tensor(step["prev_logprobs"][row][length - count : length])
        assert torch.allclose(given, own, atol=1e-4)  # what the policy says of them itself
        text = bytes(token for token in ids if token < 256).decode(errors="replace")
        advantage = step["advantages"][row][length - 1]
        by_prompt.setdefault(RIGHT in text, {}).setdefault("\\boxed{B}" in text, set()).add(
            round(advantage, 4)
        )
    assert sorted(found) == sorted(tuple(one["prompt"] + one["token_ids"]) for one in sampled)
    for group in by_prompt.values():
        assert all(len(advantages) == 1 for advantages in group.values())
        if len(group) == 2:
            assert max(group[False]) < 0 < min(group[True])


@pytest.fixture
def failing(port: int) -> Iterator[tuple[AgentServer, str]]:
    """An agent whose second `/run` fails and whose sixth is masked; from the second step on none
    works."""

    def habit(number: int) -> str:
        return {1: "fails", 5: "masked"}.get(number, "fails" if number >= PLAYED else "plays")

    server = AgentServer(f"http://127.0.0.1:{port}", habit)
    running = Threaded(server)
    yield server, running.url
    running.close()


def test_what_an_agent_fails_at_leaves_the_loss_and_nothing_else_does(
    tmp_path: Path, byte_policy: Path, port: int, failing: tuple[AgentServer, str]
) -> None:
    agent, url = failing
    trainer = {"steps": 9, "output_dir": str(tmp_path / "run"), "invalid_window_steps": 1}
    rows = [make_row(RIGHT), make_row(WRONG)]
    done = played(tmp_path, byte_policy, rows, url, port, trainer=trainer)
    assert done.returncode == 3, done.stdout[-4000:]
    assert f"{PLAYED} of the last {PLAYED} rewards are invalid" in done.stdout
    assert len(agent.runs) == 2 * PLAYED  # a /run is never sent twice
    assert not any(key.startswith(("rlbridge", "_rowidx")) for key in agent.runs[0])

    (step,) = trained_of(tmp_path)["steps"]
    kept = torch.tensor(step["sample_mask"]).bool()
    assert int((~kept).sum()) == 2
    advantages = torch.tensor([row[-1] for row in step["advantages"]])
    assert torch.equal(advantages[~kept], torch.zeros(2))
    for group, valid in zip(advantages.view(2, 8), kept.view(2, 8), strict=True):
        # As if the others had never been played: the mean of those that were is 0.
        assert float(group[valid].mean()) == pytest.approx(0, abs=1e-5)

    ledger = ledger_of(tmp_path)
    (lost,) = [line for line in ledger if line["step"] == 1 and not line["valid"]]
    assert lost["failure"] == "server_error"
    assert "the sandbox is gone" in lost["detail"]
    assert len([line for line in ledger if line["step"] == 2 and not line["valid"]]) == PLAYED
    (first,) = steps_of(tmp_path)
    figures = {name: first.native[f"train/gym/{name}"] for name in ("valid", "invalid")}
    assert figures == {"valid": PLAYED - 1, "invalid": 1}
    assert first.native["train/gym/masked_by_environment"] == 1


@pytest.fixture
def delegating(port: int) -> Iterator[str]:
    """URL of an agent that has every third answer checked by a sub-agent; the masked one's too."""

    def habit(number: int) -> str:
        return {1: "delegates masked"}.get(number, "delegates" if number % 3 == 0 else "plays")

    server = AgentServer(f"http://127.0.0.1:{port}", habit)
    running = Threaded(server)
    yield running.url
    running.close()


def test_sub_agents_are_trained_with_their_rollouts_advantage_in_the_same_updates(
    tmp_path: Path, byte_policy: Path, port: int, delegating: str
) -> None:
    trainer = {"steps": 1, "output_dir": str(tmp_path / "run")}
    data = {"train": str(tmp_path / "rows.jsonl"), "max_prompt_tokens": 64, "shuffle": False}
    rows = [make_row(RIGHT), make_row(WRONG)]
    done = played(
        tmp_path, byte_policy, rows, delegating, port,
        trainer=trainer, algorithm={"updates_per_step": 2}, data=data,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    checked = 6  # of the requests 0 to 15 every third one; what was masked has no row
    (step,) = trained_of(tmp_path)["steps"]
    sampled = json.loads((tmp_path / "run" / "sampled.json").read_text())
    assert len(sampled) == PLAYED + checked + 1

    by_rollout: list[list[int]] = []
    wanted = {tuple(one["prompt"] + one["token_ids"]): one for one in sampled}
    for number, length in enumerate(step["input_lengths"]):
        if not step["sample_mask"][number]:  # the masked rollout's, or fills an update up
            assert not any(step["token_mask"][number])
            continue
        ids = step["input_ids"][number][:length]
        one = wanted[tuple(ids)]
        text = bytes(token for token in one["prompt"] if token < 256).decode(errors="replace")
        before = len(one["prompt"])
        assert step["token_mask"][number][:length] == [0] * before + [1] * (length - before)
        for name in ("generation_logprobs", "prev_logprobs"):
            given = torch.tensor(step[name][number][before:length])
            assert torch.allclose(given, torch.tensor(one["logprobs"]), atol=1e-4), name
        if "Check " not in text:
            by_rollout.append([number])
            continue
        own = by_rollout[-1][0]
        answer = bytes(
            token
            for token, mine in zip(step["input_ids"][own], step["token_mask"][own], strict=True)
            if mine and token < 256
        ).decode(errors="replace")
        assert f"Check {answer}!" in text  # the sub-agent of this rollout
        by_rollout[-1].append(number)
    assert len(by_rollout) == PLAYED - 1
    assert sum(len(numbers) for numbers in by_rollout) == PLAYED - 1 + checked

    ledger = ledger_of(tmp_path)
    rewards = torch.zeros(2, 8)
    valid = torch.ones(2, 8, dtype=torch.bool)
    for line in ledger:
        rewards[line["row"], line["sample"]] = line["reward"]
        valid[line["row"], line["sample"]] = not line.get("mask_sample")
    assert int(valid.sum()) == PLAYED - 1
    size = step["update_rows"]
    assert len(step["input_ids"]) == 2 * size  # two updates, as without sub-agents
    places = valid.nonzero().tolist()
    for (group, sample), numbers in zip(places, by_rollout, strict=True):
        assert {number // size for number in numbers} == {group}
        kept = rewards[group][valid[group]]
        scale = float(kept.std()) + 1e-6 if float(kept.std()) else 1.0
        expected = float(rewards[group, sample] - kept.mean()) / scale
        for number in numbers:
            found = torch.tensor(step["advantages"][number][: step["input_lengths"][number]])
            assert torch.allclose(found, torch.tensor(expected), atol=1e-4)

    (figures,) = (one.native for one in steps_of(tmp_path))
    assert figures["train/gym/trajectories_per_rollout"] == pytest.approx(1 + checked / 15)
    assert figures["train/gym/untrained_tokens"] == 0
    means = [float(rewards[group][valid[group]].mean()) for group in (0, 1)]
    assert figures["train/reward"] == pytest.approx(sum(means) / 2)  # each rollout once
