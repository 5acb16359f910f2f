"""The same calls against real nemo-gym 0.4.0 servers, by both transports."""

from typing import Any

import pytest

from rlbridge.contracts.reward import FailureClass
from rlbridge.errors import GymStatusError
from rlbridge.gym import GymClient
from rlbridge.testing import make_response, make_row, make_tool_call

pytestmark = pytest.mark.nemo_gym

MCQA = make_row(
    "Which letter? Answer inside \\boxed{}.",
    options=[{"A": "this"}, {"B": "that"}],
    expected_answer="B",
    grading_mode="strict_single_letter_boxed",
    uuid="row-1",
)
COUNTER = make_row("Count.", initial_count=3, expected_count=6)
WEATHER = make_row("What is the weather in Rome?")
WORKPLACE = make_row(
    "Find Carlos.",
    id=1,
    ground_truth=[],
    category="workplace_assistant_email",
    environment_name="workplace_assistant",
)
TOKENS = {
    "prompt_token_ids": list(range(2000)),
    "generation_token_ids": [4, 5],
    "generation_log_probs": [-0.1, -0.2],
}


async def test_mcqa_judges_text_messages_items_and_objects(
    nemo_gym_server: Any, quick_config: Any
) -> None:
    async with GymClient(quick_config(nemo_gym_server("mcqa"), verify_timeout_s=60.0)) as gym:
        await gym.check_alive()
        answers: list[Any] = [
            "\\boxed{B}",
            [{"role": "assistant", "content": "\\boxed{B}"}],
            [{"type": "message", "role": "assistant", "content": "\\boxed{B}"}],
            make_response("\\boxed{B}"),
            {**make_response("\\boxed{B}"), "created_at": None},
            {"choices": [{"message": {"role": "assistant", "content": "\\boxed{B}"}}]},
        ]
        right = [await gym.verify(MCQA, answer) for answer in answers]
        wrong = await gym.verify(MCQA, "\\boxed{A}")
    assert [reward.valid and reward.value for reward in right] == [1.0] * len(answers)
    assert wrong.valid
    assert wrong.value == 0.0


async def test_mcqa_never_sees_token_fields(nemo_gym_server: Any, quick_config: Any) -> None:
    response = make_response("\\boxed{B}")
    response["output"][0].update(TOKENS)
    async with GymClient(quick_config(nemo_gym_server("mcqa"), verify_timeout_s=60.0)) as gym:
        reward = await gym.verify(MCQA, response)
    assert reward.valid
    assert reward.value == 1.0
    assert response["output"][0]["prompt_token_ids"] == TOKENS["prompt_token_ids"]


async def test_mcqa_refuses_an_unknown_parameter_unless_it_is_dropped(
    nemo_gym_server: Any, quick_config: Any
) -> None:
    params = {**MCQA["responses_create_params"], "seed": 1}
    row = {**MCQA, "responses_create_params": params}
    url = nemo_gym_server("mcqa")
    async with GymClient(quick_config(url)) as gym:
        sent = await gym.verify(row, "\\boxed{B}")
    async with GymClient(quick_config(url, unknown_params="refuse")) as gym:
        refused = await gym.verify(row, "\\boxed{B}")
    async with GymClient(quick_config(url, unknown_params="drop")) as gym:
        dropped = await gym.verify(row, "\\boxed{B}")
    assert not sent.valid
    assert (sent.failure, sent.status) == (FailureClass.BAD_ROW, 422)
    assert "seed" in sent.detail
    assert not refused.valid
    assert (refused.failure, refused.attempts) == (FailureClass.BAD_ROW, 0)
    assert dropped.valid


async def test_mcqa_aggregates_metrics(nemo_gym_server: Any, quick_config: Any) -> None:
    rollouts = [
        {
            "_ng_task_index": task,
            "_ng_rollout_index": n,
            "reward": float(n),
            "extracted_answer": "B",
        }
        for task in range(2)
        for n in range(2)
    ]
    async with GymClient(quick_config(nemo_gym_server("mcqa"), verify_timeout_s=60.0)) as gym:
        metrics = await gym.aggregate_metrics(rollouts)
    assert metrics["agent_metrics"]["mean/reward"] == 0.5


async def test_math_judges_by_its_library(nemo_gym_server: Any, quick_config: Any) -> None:
    row = make_row("What is 1/2?", question="What is 1/2?", expected_answer="0.5")
    # Its library forks for every call: slow on a busy machine.
    config = quick_config(nemo_gym_server("math_with_judge"), verify_timeout_s=120.0)
    async with GymClient(config) as gym:
        right = await gym.verify(row, "\\boxed{\\frac{1}{2}}")
        wrong = await gym.verify(row, "\\boxed{3}")
        bad = await gym.verify(make_row("q", question="q"), "\\boxed{3}")
    assert right.valid
    assert right.value == 1.0
    assert wrong.valid
    assert wrong.value == 0.0
    assert not bad.valid
    assert bad.failure is FailureClass.BAD_ROW
    assert "expected_answer" in bad.detail


async def test_a_counter_session_keeps_its_state(nemo_gym_server: Any, quick_config: Any) -> None:
    url = nemo_gym_server("example_session_state_mgmt")
    async with GymClient(quick_config(url)) as gym, gym.session(COUNTER) as session:
        await session.call_tool("increment_counter", {"count": 1})
        await session.call_tool("increment_counter", {"count": 2})
        count = await session.call_tool("get_counter_value")
        reward = await session.verify("The count is 6")
        with pytest.raises(GymStatusError, match="count") as refused:
            await session.call_tool("increment_counter", {"count": "abc"})
    assert count == {"count": 6}
    assert reward.valid
    assert reward.value == 1.0
    assert refused.value.status == 422


async def test_a_tampered_cookie_is_a_lost_session_and_no_zero(
    nemo_gym_server: Any, quick_config: Any
) -> None:
    url = nemo_gym_server("example_session_state_mgmt")
    async with GymClient(quick_config(url)) as gym, gym.session(COUNTER) as session:
        tamper(session)
        reward = await session.verify("The count is 6")
    assert not reward.valid
    assert reward.failure is FailureClass.LOST_SESSION


def tamper(session: Any) -> None:
    """What a broken proxy does: the signature no longer fits."""
    cookies = session._jar._cookies
    for name in cookies:
        value = cookies[name]
        cookies[name] = value[:-2] + ("A" if value[-2] != "A" else "B") + value[-1]


async def test_two_sessions_at_once_do_not_mix(nemo_gym_server: Any, quick_config: Any) -> None:
    url = nemo_gym_server("example_session_state_mgmt")
    async with (
        GymClient(quick_config(url)) as gym,
        gym.session(COUNTER) as one,
        gym.session({**COUNTER, "initial_count": 100}) as other,
    ):
        await one.call_tool("increment_counter", {"count": 3})
        counts = [await s.call_tool("get_counter_value") for s in (one, other)]
    assert counts == [{"count": 6}, {"count": 100}]


async def test_a_weather_tool_answers_and_its_call_is_judged(
    nemo_gym_server: Any, quick_config: Any
) -> None:
    url = nemo_gym_server("example_single_tool_call")
    async with GymClient(quick_config(url)) as gym, gym.session(WEATHER) as session:
        answer = await session.call_tool("get_weather", {"city": "Rome"})
        reward = await session.verify([make_tool_call("get_weather", '{"city": "Rome"}')])
        with pytest.raises(GymStatusError) as unknown:
            await session.call_tool("get_time")
    assert answer["city"] == "Rome"
    assert reward.valid
    assert unknown.value.status == 404


async def test_the_workplace_answers_tools_and_judges(
    nemo_gym_server: Any, quick_config: Any
) -> None:
    url = nemo_gym_server("workplace_assistant")
    async with GymClient(quick_config(url)) as gym, gym.session(WORKPLACE) as session:
        found = await session.call_tool("company_directory_find_email_address", {"name": "carlos"})
        unknown = await session.call_tool("not_a_tool")
        reward = await session.verify("done")
    assert "carlos" in found["output"][0]
    assert unknown["output"].startswith("Error")
    assert reward.valid
