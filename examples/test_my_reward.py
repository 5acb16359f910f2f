"""A reward config under test in ten lines: no server, no socket (`pytest examples`)."""

from rlbridge.gym import GymClient
from rlbridge.testing import Faults, make_row


async def test_a_broken_verifier_never_becomes_a_zero(gym_mock):
    gym_mock.behaviour.rewards = [1.0, 0.0]
    async with GymClient(gym_mock.config(max_attempts=1)) as gym:
        right = await gym.verify(make_row(expected_answer="4"), "It is 4.")
        wrong = await gym.verify(make_row(expected_answer="4"), "It is 5.")
        gym_mock.behaviour.faults = Faults(rate=1.0, kinds=["status_500"])
        broken = await gym.verify(make_row(expected_answer="4"), "It is 6.")
    assert (right.value, wrong.value) == (1.0, 0.0)
    assert not broken.valid
    assert broken.status == 500
