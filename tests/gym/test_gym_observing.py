"""Discovery, metrics, and what an import costs."""

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest
import yaml
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from rlbridge.errors import GymError, GymReplyError
from rlbridge.gym import GymClient
from rlbridge.gym.discovery import discover, read_global_config, running_instances
from rlbridge.gym.metrics import PrometheusCollector, instrument_opentelemetry
from rlbridge.gym.replies import Failure, Reply
from rlbridge.gym.stats import BUCKETS_S
from rlbridge.testing import Faults, GymMock, GymServer, make_row


@pytest.mark.parametrize("form", ["yaml_in_json", "yaml", "json"])
def test_the_global_config_is_read_in_all_its_forms(capture: Any, form: str) -> None:
    text = capture("head__global_config_dict_yaml")["response"]["body"]
    forms = {
        "yaml_in_json": json.dumps(text),
        "yaml": text,
        "json": json.dumps(yaml.safe_load(text)),
    }
    config = read_global_config(Reply(200, "application/json", forms[form].encode()))
    assert isinstance(config, dict)
    assert config["mcqa"]["resources_servers"]["mcqa"]["port"] == 18303


@pytest.mark.parametrize("body", [b"", b"[1]", b'"{a: ["', b"api_key: [secret", b"\xff"])
def test_what_is_no_config_is_told_without_being_quoted(body: bytes) -> None:
    failure = read_global_config(Reply(200, "application/json", body))
    assert isinstance(failure, Failure)
    assert "secret" not in failure.detail


async def test_servers_are_found_through_the_head_server(gym_mock: GymMock, capture: Any) -> None:
    config = capture("head__global_config_dict_yaml")["response"]["body"]
    instances = capture("head__server_instances")["response"]["body"]
    routes = {"/global_config_dict_yaml": config, "/server_instances": instances}
    for route, body in routes.items():
        gym_mock.router.get(gym_mock.url + route, name=route).respond(json=body)
        gym_mock.router.routes._routes.insert(0, gym_mock.router.routes._routes.pop())
    async with GymClient(gym_mock.config()) as head:
        found = await discover(head)
        running = await running_instances(head)
    by_name = {server.name: server for server in found}
    assert by_name["mcqa"].url == "http://127.0.0.1:18303"
    assert by_name["mcqa_simple_agent"].kind == "responses_api_agents"
    assert by_name["counter"].implementation == "example_session_state_mgmt"
    assert [server.url for server in running] == ["http://127.0.0.1:18303"]


async def test_a_server_that_is_no_head_server_is_told(gym_mock: GymMock) -> None:
    async with GymClient(gym_mock.config()) as head:
        with pytest.raises(GymError, match="404"):
            await discover(head)
        gym_mock.router.get(gym_mock.url + "/server_instances", name="x").respond(json=[1])
        gym_mock.router.routes._routes.insert(0, gym_mock.router.routes._routes.pop())
        with pytest.raises(GymReplyError):
            await running_instances(head)


async def test_prometheus_shows_every_outcome(gym_mock: GymMock) -> None:
    async with GymClient(gym_mock.config(max_attempts=1)) as gym:
        registry = CollectorRegistry()
        registry.register(PrometheusCollector(gym))
        gym_mock.behaviour.faults = Faults(script=["status_500"])
        await gym.verify(make_row(), "a")
        await gym.verify(make_row(), "b")
        text = generate_latest(registry).decode()
    assert 'rlbridge_gym_verifies_total{outcome="valid"} 1.0' in text
    assert 'rlbridge_gym_verifies_total{outcome="server_error"} 1.0' in text
    assert 'rlbridge_gym_attempts_total{route="verify"} 2.0' in text
    assert 'rlbridge_gym_attempt_seconds_bucket{le="+Inf"} 2.0' in text


def exported(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    """Data points by metric, as an exporter gets them."""
    data = reader.get_metrics_data()
    assert data is not None
    scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
    return {m.name: list(m.data.data_points) for scope in scopes for m in scope.metrics}


async def test_opentelemetry_exports_every_outcome_and_latencies_as_a_histogram(
    gym_mock: GymMock,
) -> None:
    readers = [InMemoryMetricReader() for _ in range(2)]
    providers = [MeterProvider([reader]) for reader in readers]
    async with GymClient(gym_mock.config(max_attempts=1)) as gym:
        await gym.verify(make_row(), "before anybody listened")
        for provider in providers:
            instrument_opentelemetry(gym, provider.get_meter("test"))
        gym_mock.behaviour.faults = Faults(script=["status_500"])
        await gym.verify(make_row(), "a")
        await gym.verify(make_row(), "b")
        points = [exported(reader) for reader in readers]
        counted, total_s = gym.stats.latency.count, gym.stats.latency.total_s
    for provider in providers:
        provider.shutdown()
    for found in points:
        outcomes = {p.attributes["outcome"]: p.value for p in found["rlbridge_gym_verifies"]}
        assert outcomes == {"valid": 2, "cancelled": 0, "server_error": 1}
        assert [p.value for p in found["rlbridge_gym_attempts"]] == [3]
        assert [p.value for p in found["rlbridge_gym_in_flight"]] == [0]
        (latency,) = found["rlbridge_gym_attempt_seconds"]
        assert latency.count == sum(latency.bucket_counts) == 2
        assert tuple(latency.explicit_bounds) == BUCKETS_S
        assert 0 < latency.sum < total_s
    assert counted == 3


@pytest.mark.parametrize("first_answer", [[], ["missing_reward"]], ids=["good", "bad"])
async def test_the_log_says_when_a_server_went_down_and_came_back(
    gym_server: GymServer,
    quick_config: Any,
    caplog: pytest.LogCaptureFixture,
    first_answer: list[str],
) -> None:
    gym_server.behaviour.faults = Faults(script=first_answer)
    await gym_server.stop()
    async with GymClient(quick_config(gym_server.url, breaker_failures=1)) as gym:
        assert not (await gym.verify(make_row(), "a")).valid
        await gym_server.start()
        while not gym.stats.valid:
            await gym.verify(make_row(), "b")
            await asyncio.sleep(0.005)
    told = [record.message for record in caplog.records if record.name == "rlbridge.gym"]
    assert told == ["gym server is down", "gym server is up again"]


@pytest.mark.parametrize("module", ["rlbridge", "rlbridge.gym", "rlbridge.testing.plugin"])
def test_an_import_brings_no_http_library(module: str) -> None:
    heavy = "'aiohttp', 'httpx', 'fastapi', 'uvicorn', 'respx', 'pydantic_ai'"
    code = f"import sys, {module}; print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
