"""The test kit behaves as a Gym server does, and its example works as a user would run it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlbridge.errors import ContractError
from rlbridge.gym import GymClient
from rlbridge.testing import Faults, GymMock, GymServer, make_response, make_row

ROOT = Path(__file__).parents[2]


def test_the_example_of_ten_lines_passes() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["examples/test_my_reward.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("kind", ["mock", "server"])
async def test_rewards_come_by_number_in_turn_or_by_function(
    kind: str, gym_mock: GymMock, gym_server: GymServer
) -> None:
    behaviour = gym_mock.behaviour if kind == "mock" else gym_server.behaviour
    config = gym_mock.config() if kind == "mock" else gym_mock.config(url=gym_server.url)
    if kind == "server":
        gym_mock.router.stop()
    async with GymClient(config) as gym:
        rewards = []
        for script in (0.5, iter([0.25]), lambda body: float(body["expected_answer"])):
            behaviour.rewards = script
            reward = await gym.verify(make_row(expected_answer="4"), str(len(rewards)))
            assert reward.valid
            rewards.append(reward.value)
    if kind == "server":
        gym_mock.router.start()
    assert rewards == [0.5, 0.25, 4.0]


async def test_required_fields_are_required(gym_mock: GymMock) -> None:
    gym_mock.behaviour.required = ("expected_answer",)
    async with GymClient(gym_mock.config()) as gym:
        reward = await gym.verify(make_row(), "4")
    assert not reward.valid
    assert reward.detail == "422: body.expected_answer: Field required"


async def test_a_tampered_cookie_starts_a_fresh_session(gym_mock: GymMock) -> None:
    gym_mock.behaviour.tools = {"who": lambda session, _body: {"session": session}}
    async with httpx.AsyncClient(base_url=gym_mock.url) as client:
        first = await client.post("/who", json={})
        again = await client.post("/who", json={})
        name, value = next(iter(client.cookies.items()))
        client.cookies.clear()
        other = await client.post("/who", json={}, headers={"cookie": f"{name}={value[:-1]}_"})
    assert first.json() == again.json()
    assert other.json() != first.json()


@pytest.mark.parametrize("spoil", ["id", "created_at", "output", "tools"])
async def test_the_mock_refuses_what_a_server_refuses(gym_mock: GymMock, spoil: str) -> None:
    response = make_response("4")
    del response[spoil]
    async with httpx.AsyncClient(base_url=gym_mock.url) as client:
        answer = await client.post("/verify", json={**make_row(), "response": response})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "response", spoil]


def test_faults_repeat_with_their_seed() -> None:
    one, other = Faults(rate=0.5, seed=3), Faults(rate=0.5, seed=3)
    assert [one.next() for _ in range(50)] == [other.next() for _ in range(50)]


@pytest.mark.parametrize("fields", [{"rate": 1.5}, {"rate": -0.1}])
def test_a_rate_that_is_none_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        Faults(**fields)
