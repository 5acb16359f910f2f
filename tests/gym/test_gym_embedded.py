"""The embedded Gym against captured traffic of nemo-gym, and against the client."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlbridge.errors import ConfigError
from rlbridge.evaluators.arithmetic import SPEC
from rlbridge.gym import GymClient
from rlbridge.gym.embedded.aggregate import aggregate_metrics
from rlbridge.gym.embedded.server import evaluator_app
from rlbridge.plugins import Plugins
from rlbridge.serving import PARENT_POLL_S
from rlbridge.testing import make_row

SAME = [
    "mcqa__WRONG_no_rcp",
    "mcqa__WRONG_no_response",
    "mcqa__WRONG_response_output_only_with_rcp",
    "mcqa__WRONG_response_output_text_string",
    "mcqa__WRONG_response_plain_string",
    "mcqa__WRONG_chat_completion_as_response",
    "mcqa__metadata_echo_response_null_created_at",
    "mcqa__verify_extra_field_in_rcp_400",
    "mcqa__WRONG_invalid_json",
    "mcqa__WRONG_get_verify",
    "mcqa__404_path",
    "mcqa__liveness",
    "mcqa__seed_session_empty_obj",
    "mcqa__seed_session_no_body",
    "mcqa__aggregate_metrics_empty",
    "mcqa__WRONG_aggregate_metrics_missing_keys",
    "math__WRONG_missing_expected_answer",
    "math__WRONG_expected_answer_int",
]
ECHOED = [
    "mcqa__verify_correct_minimal",
    "mcqa__verify_input_as_string",
    "mcqa__verify_with_token_ids",
    "mcqa__verify_token_ids_partial_fields",
    "mcqa__verify_token_ids_logprob_null",
    "mcqa__token_ids_len_mismatch",
    "mcqa__verify_empty_output",
    "mcqa__verify_extra_top_level_field",
    "math__verify_reasoning_plus_message",
    "weather__function_call_with_token_ids",
]


CLI = [sys.executable, "-c", "from rlbridge.cli.main import main; main()", "gym"]
SERVE = [*CLI, "serve", "arithmetic", "--port", "0"]


@pytest.fixture
async def wire() -> Any:
    transport = httpx.ASGITransport(evaluator_app(SPEC, SPEC.make({})))
    async with httpx.AsyncClient(transport=transport, base_url="http://gym") as client:
        yield client


async def ask(wire: httpx.AsyncClient, request: dict[str, Any], **fields: Any) -> httpx.Response:
    body = request["body"]
    if isinstance(body, dict) and request["path"] == "/verify":
        body = {**body, **fields}
    raw = body if isinstance(body, str) else json.dumps(body)
    content = None if body is None else raw.encode()
    return await wire.request(
        request["method"], request["path"], content=content, headers=request["headers"]
    )


@pytest.mark.parametrize("name", SAME)
async def test_it_refuses_and_answers_word_for_word_as_captured(
    wire: httpx.AsyncClient, capture: Any, name: str
) -> None:
    pair = capture(name)
    needs_answer = name.startswith("mcqa") and "expected_answer" in (pair["request"]["body"] or {})
    fields = {"expected_answer": "4"} if needs_answer else {}
    answer = await ask(wire, pair["request"], **fields)
    expected = pair["response"]
    assert answer.status_code == expected["status"]
    assert without_input(answer.json()) == without_input(expected["body"])
    assert ("set-cookie" in answer.headers) == ("set-cookie" in expected["headers"])


def without_input(body: Any) -> Any:
    """A 422 quotes its input, which holds the row's own answer."""
    if isinstance(body, dict) and isinstance(body.get("detail"), list):
        return [{key: item[key] for key in item if key != "input"} for item in body["detail"]]
    return body


@pytest.mark.parametrize("name", ECHOED)
async def test_its_echo_is_the_captured_one(
    wire: httpx.AsyncClient, capture: Any, name: str
) -> None:
    pair = capture(name)
    answer = (await ask(wire, pair["request"], expected_answer="4")).json()
    for key in ("responses_create_params", "response"):
        assert json.dumps(answer[key]) == json.dumps(pair["response"]["body"][key])


async def test_the_cookie_is_set_on_every_answer_and_names_one_session(
    wire: httpx.AsyncClient,
) -> None:
    answers = [await wire.post("/seed_session", json={}) for _ in range(2)]
    answers.append(await wire.get("/nowhere"))
    name = "ArithmeticResourcesServer___arithmetic"
    assert all(name in answer.cookies for answer in answers)
    payloads = {answer.cookies[name].split(".")[0] for answer in answers}
    assert len(payloads) == 1


@pytest.mark.parametrize("expected", ["", "four"])
async def test_a_row_it_cannot_judge_is_a_422(wire: httpx.AsyncClient, expected: str) -> None:
    headers = {"content-type": "application/json"}
    pair = {"method": "POST", "path": "/verify", "headers": headers}
    body = {**make_row(), "response": {}, "expected_answer": expected}
    answer = await ask(
        wire, {**pair, "body": body, "headers": {"content-type": "application/json"}}
    )
    assert answer.status_code == 422
    assert "expected_answer" in answer.text


def test_metrics_are_the_captured_ones(capture: Any) -> None:
    pair = capture("mcqa__aggregate_metrics_ok")
    metrics = aggregate_metrics(pair["request"]["body"]["verify_responses"])
    expected = pair["response"]["body"]
    assert metrics["group_level_metrics"] == expected["group_level_metrics"]
    # pass@k and majority@k are mcqa's own.
    plain = {key: value for key, value in expected["agent_metrics"].items() if "@" not in key}
    del plain["per_sample_aggregate"]
    assert metrics["agent_metrics"] == plain
    assert metrics["key_metrics"] == {"mean/reward": 0.75}


def test_an_unknown_server_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'arithmetic'"):
        Plugins().evaluator_spec("arithmetics")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    ready = tmp_path / "ready.json"
    command = [*SERVE, "--ready-file", str(ready)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            told = json.loads(ready.read_text())
            assert line.strip().endswith(told["url"])
            yield told["url"], process
        finally:
            process.kill()


async def test_a_served_gym_judges_and_ends_with_status_0(
    served: tuple[str, "subprocess.Popen[str]"], quick_config: Any
) -> None:
    url, process = served
    async with GymClient(quick_config(url)) as gym:
        await gym.check_alive()
        async with gym.session(make_row(expected_answer="4")) as session:
            right = await session.verify("\\boxed{4}")
        wrong = await gym.verify(make_row(expected_answer="4"), "5")
        bad = await gym.verify(make_row(), "5")
    assert right.valid
    assert (right.value, right.components) == (1.0, {"correct": 1.0, "answered": 1.0})
    assert wrong.valid
    assert wrong.value == 0.0
    assert not bad.valid
    assert bad.status == 422
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0


def test_ctrl_c_ends_a_served_gym_with_status_0(
    served: tuple[str, "subprocess.Popen[str]"],
) -> None:
    _, process = served
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@pytest.mark.parametrize("bound", [True, False], ids=["exit_with_parent", "on_its_own"])
def test_a_served_gym_ends_with_its_parent_if_told_to(tmp_path: Path, bound: bool) -> None:
    ready = tmp_path / "ready.json"
    command = [*SERVE, "--ready-file", str(ready), *(["--exit-with-parent"] if bound else [])]
    parent = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
    pid, ended = 0, []
    with subprocess.Popen(
        [sys.executable, "-c", parent, *command], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            pid = json.loads(ready.read_text())["pid"]
            process.kill()
            # The pipe is at its end once the server, which has it too, is gone.
            ended, _, _ = select.select(
                [process.stdout], [], [], 60 if bound else 2 * PARENT_POLL_S
            )
            assert bool(ended) is bound
        finally:
            process.kill()
            if pid and not ended:
                os.kill(pid, signal.SIGKILL)


def test_a_served_gym_can_be_checked(
    served: tuple[str, "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    good, bad = make_row(expected_answer="4"), make_row(expected_answer="four")
    rows.write_text(json.dumps(good) + "\n")
    fine = run_check(served[0], rows)
    rows.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    broken = run_check(served[0], rows)
    report = json.loads(fine.stdout)
    assert fine.returncode == 0
    assert report["rows"][0]["deterministic"] is True
    assert report["bad_rows"] == {
        "without responses_create_params": "refused (422)",
        "without the verifier's fields": "refused (422)",
        "with an unknown parameter": "refused (422)",
    }
    assert broken.returncode == 2
    assert "integer" in json.loads(broken.stdout)["rows"][1]["problem"]


def run_check(url: str, rows: Path) -> "subprocess.CompletedProcess[str]":
    command = [*CLI, "check", url, "--rows", str(rows), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
