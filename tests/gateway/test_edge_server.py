"""`rlbridge gateway serve` as users run it: a process before a stub engine, over real sockets."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from benchmarks.engine import free_port
from benchmarks.gateway_contenders import Contender, make_tokenizer, running_gateway
from benchmarks.stub_engine import MODEL, running_stub
from rlbridge.testing.real_servers import nemo_gym_python, running_nemo_gym, why_unavailable

MESSAGES = [{"role": "user", "content": "what is the weather"}]
BODY = {"model": MODEL, "messages": MESSAGES, "max_tokens": 64}
ROW = {"responses_create_params": {"input": MESSAGES}, "expected_answer": "B"}

Start = Callable[..., Contender]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts gateways: `start(*options, delay_s=0)`, captures in a folder of their own."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    answer = make_tokenizer(tokenizer)
    with ExitStack() as stack:
        upstream: dict[float, str] = {}

        def started(*options: str, delay_s: float = 0.0, **fields: Any) -> Contender:
            if delay_s not in upstream:
                upstream[delay_s], _ = stack.enter_context(running_stub(answer, delay_s=delay_s))
            captures = fields.pop("captures", None) or tmp_path_factory.mktemp("captures")
            url = fields.pop("url", upstream[delay_s])
            return stack.enter_context(
                running_gateway(url, tokenizer, captures, *options, **fields)
            )

        yield started


@pytest.fixture(scope="module")
def gateway(start: Start) -> str:
    return start().url


def chat(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={**BODY, **fields}, timeout=30)


def test_health_and_readiness_and_what_stands_behind(gateway: str) -> None:
    assert httpx.get(f"{gateway}/").json() == {"status": "ok"}
    assert httpx.get(f"{gateway}/health").json() == {"status": "ok"}
    ready = httpx.get(f"{gateway}/ready")
    assert ready.status_code == 200
    assert ready.json()["engine"]["model"] == MODEL
    assert ready.json()["engine"]["tokens"] is True


def test_metrics_count_requests_by_route_without_session_names(gateway: str) -> None:
    assert chat(f"{gateway}/s/secret-name").status_code == 200
    httpx.get(f"{gateway}/no/such/route")
    text = httpx.get(f"{gateway}/metrics").text
    assert 'requests_total{route="/v1/chat/completions",status="200"}' in text
    assert 'requests_total{route="other",status="404"}' in text
    assert "secret-name" not in text


def test_status_prints_what_stands_behind_and_counts(gateway: str) -> None:
    command = [sys.executable, "-m", "rlbridge", "gateway", "status", gateway]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert f"policy {MODEL}" in done.stdout
    assert "exact tokens" in done.stdout


def test_status_of_nothing_is_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "rlbridge", "gateway", "status", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "no policy"),
        (["--policy", "http://127.0.0.1:9", "--host", "0.0.0.0"], "--token-file"),
        (["missing.yaml"], "can't read the config"),
        (["--policy", "127.0.0.1:9"], "http://"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(options: list[str], words: str) -> None:
    command = [sys.executable, "-m", "rlbridge", "gateway", "serve", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_is_asked_for_and_a_session_token_opens_its_session(
    start: Start, tmp_path: Path
) -> None:
    from rlbridge.gateway.access import Access

    url = start("--token-file", str(tmp_path / "token")).url
    token = (tmp_path / "token").read_text().strip()
    agent = {"Authorization": f"Bearer {Access(token).session_token('r1')}"}
    asked = {"json": BODY, "timeout": 30}
    assert chat(url).status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200
    own = httpx.post(f"{url}/s/r1/v1/chat/completions", headers=agent, **asked)
    other = httpx.post(f"{url}/s/r2/v1/chat/completions", headers=agent, **asked)
    assert (own.status_code, other.status_code) == (200, 401)
    owner = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{url}/s/r1/rollout", headers=owner).status_code == 200


def test_the_documents_config_is_one(tmp_path: Path) -> None:
    from rlbridge.gateway.server import read_config

    text = Path("docs/gateway.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "gateway.yaml").write_text(text)
    config = read_config(tmp_path / "gateway.yaml", {"policy": {"url": "http://127.0.0.1:9"}})
    assert config.policy.url == "http://127.0.0.1:9"
    assert config.sampling.mode == "trainer"
    assert config.agent.names == ("math_agent",)


def test_an_engine_that_never_comes_up_ends_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    url = f"http://127.0.0.1:{free_port()}"
    config.write_text(json.dumps({"policy": {"url": url, "ready_timeout_s": 1.0}, "port": 0}))
    command = [sys.executable, "-m", "rlbridge", "gateway", "serve", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert url in done.stderr


def test_sigterm_while_waiting_for_the_engine_ends_at_once(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "rlbridge", "gateway", "serve", "--policy", url,
               "--port", "0"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "waiting for the policy" in process.stderr.readline()
        time.sleep(1.0)
        process.terminate()
        assert process.wait(60) == 0


def test_sigterm_lets_calls_in_flight_end_and_keeps_them(start: Start, tmp_path: Path) -> None:
    gateway = start(delay_s=1.5, captures=tmp_path)
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(chat(f"{gateway.url}/s/late")))
    caller.start()
    while not httpx.get(f"{gateway.url}/status", timeout=60).json()["counts"]["in_flight"]:
        assert caller.is_alive(), "the call ended before anybody looked"
        time.sleep(0.02)
    os.kill(gateway.pid, signal.SIGTERM)
    caller.join(60)
    assert [answer.status_code for answer in answers] == [200]
    _wait_for_end(gateway.pid)
    with pytest.raises(httpx.ConnectError):
        chat(gateway.url)
    again = start(captures=tmp_path).url
    kept = httpx.get(f"{again}/s/late/rollout")
    assert kept.status_code == 200
    assert "late" in kept.text


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"{pid} still runs")


def test_without_a_judge_run_says_so_and_generate_generates(gateway: str) -> None:
    run = httpx.post(f"{gateway}/run", json=ROW, timeout=30)
    assert run.status_code == 501
    assert run.json()["error"]["code"] == "no_judge"
    point = {"messages": MESSAGES, "problem": "p"}
    done = httpx.post(f"{gateway}/generate", json=point, timeout=30)
    assert done.status_code == 200, done.text
    document = done.json()
    assert document["problem"] == "p"
    assert document["generation"]
    assert document["num_generated_tokens"] > 1
    assert "reward" not in document


def test_nobody_connects_to_a_url_in_a_row(gateway: str) -> None:
    asked: list[str] = []

    class Trap(threading.Thread):
        def run(self) -> None:
            import socket

            with socket.socket() as listener:
                listener.bind(("127.0.0.1", port))
                listener.listen()
                listener.settimeout(3)
                try:
                    listener.accept()
                    asked.append("connected")
                except TimeoutError:
                    pass

    port = free_port()
    trap = Trap()
    trap.start()
    url = f"http://127.0.0.1:{port}"
    row = {**ROW, "url": url, "gym": {"url": url}, "verify_url": url, "agent_ref": {"url": url}}
    row["responses_create_params"] = {"input": MESSAGES, "metadata": {"base_url": url}}
    httpx.post(f"{gateway}/generate", json=row, timeout=30)
    httpx.post(f"{gateway}/run", json=row, timeout=30)
    chat(gateway, metadata={"base_url": url})
    trap.join()
    assert asked == []


@pytest.mark.filterwarnings("ignore")
def test_no_request_that_the_openapi_document_allows_ends_in_an_unhandled_500(
    gateway: str,
) -> None:
    schema = schemathesis.openapi.from_url(f"{gateway}/openapi.json")
    seen: list[tuple[str, int]] = []
    for found in schema.get_all_operations():
        _fuzz(found.ok().as_strategy(), seen)
    assert len({route for route, _ in seen}) >= 8


def _fuzz(strategy: Any, seen: list[tuple[str, int]]) -> None:
    @settings(max_examples=12, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=strategy)
    def ask(case: Any) -> None:
        answer = case.call(timeout=20)
        seen.append((case.operation.label, answer.status_code))
        assert answer.status_code < 500 or answer.status_code in (501, 503), answer.text

    ask()


@pytest.mark.nemo_gym
def test_gyms_own_collector_finds_the_gateway_by_name_and_reads_its_runs(
    start: Start, tmp_path: Path
) -> None:
    if why_unavailable():
        pytest.skip(why_unavailable())
    from rlbridge.testing import make_row

    row = make_row(
        "Which letter?",
        options=[{"A": "this"}, {"B": "that"}],
        expected_answer="B",
        grading_mode="strict_single_letter_boxed",
        uuid="row-1",
    )
    row["agent_ref"] = {"name": "policy_agent"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    with running_nemo_gym("mcqa") as gym:
        gateway = start("--gym", gym).url
        host, _, port = gateway.removeprefix("http://").partition(":")
        script = Path(__file__).with_name("gym_collect.py")
        command = [str(nemo_gym_python()), str(script), host, port, str(tmp_path / "rows.jsonl")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 2, done.stderr[-2000:]
    for line in lines:
        assert line["result"]["reward"] == 0.0  # the stub talks of the weather
        (item,) = line["result"]["response"]["output"]
        assert len(item["generation_token_ids"]) == len(item["generation_log_probs"]) > 1
        assert item["prompt_token_ids"]
