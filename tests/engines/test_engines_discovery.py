"""One named source gives the engines; what it gives is checked, and nothing is guessed."""

import asyncio
import importlib.util
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from rlbridge.engines.config import PolicyConfig, RayEntry, check_url
from rlbridge.engines.discovery import policy_in, source_of
from rlbridge.engines.open import open_engine
from rlbridge.engines.registry import (
    RegistryEntry,
    publish,
    publish_ray,
    read,
    read_ray,
    watch,
)
from rlbridge.errors import ConfigError, EngineError
from rlbridge.testing import VllmServer
from rlbridge.testing.exchange import Exchange, LocalServer


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "exactly one of url, urls, ray, gym_head, file; got none"),
        ({"url": "http://a", "file": "b"}, "got url and file"),
        ({"url": "a:8000"}, "http:// or https://"),
        ({"urls": ["http://a", None, "ftp://b"]}, "http:// or https://"),
        ({"url": "http://user:pw@a"}, "no credentials"),
        ({"url": "http://a?key=1"}, "no credentials and no query"),
        ({"url": "http://a", "wire": "nemo_rl"}, "needs model"),
        ({"url": "http://a", "keepalive_s": 5}, "less than 5"),
        ({"url": "http://a", "modle": "x"}, "did you mean 'model'"),
    ],
)
def test_a_wrong_config_is_refused_with_what_to_do(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PolicyConfig.parse(config)


def test_a_base_url_may_end_in_v1() -> None:
    for url in ("http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"):
        assert check_url(url) == "http://a:1"
    assert check_url("https://a/serve/v1") == "https://a/serve"


def test_an_entry_is_published_whole_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "policy.json"
    assert read(path) is None
    entry = RegistryEntry(urls=("http://a", None), model="m", policy_version=3)
    publish(path, entry)
    assert read(path) == entry
    publish(path, RegistryEntry(urls=()))
    assert [file.name for file in path.parent.iterdir()] == ["policy.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"urls": 5}', '{"urls": [], "extra": 1}'])
def test_a_file_that_is_no_entry_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"policy\.json"):
        read(path)


def _publish_often(path: Path, count: int) -> None:
    for number in range(count):
        urls = tuple(f"http://127.0.0.1:{port}" for port in range(1, 2 + number % 50))
        publish(path, RegistryEntry(urls=urls, policy_version=number))


def test_a_reader_never_finds_a_part_of_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    writer = multiprocessing.get_context("spawn").Process(target=_publish_often, args=(path, 300))
    writer.start()
    seen = set()
    while writer.is_alive():
        entry = read(path)
        if entry is not None:
            assert len(entry.urls) == 1 + int(str(entry.policy_version)) % 50
            seen.add(entry.policy_version)
    writer.join()
    assert writer.exitcode == 0
    assert len(seen) > 1


async def test_a_watcher_gets_each_entry_once(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"

    async def reader() -> RegistryEntry | None:
        return read(path)

    found = []
    publish(path, RegistryEntry(urls=(), policy_version=0))
    async with asyncio.timeout(60):
        async for entry in watch(reader, interval_s=0.01):
            found.append(entry.policy_version)
            if len(found) == 3:
                break
            publish(path, RegistryEntry(urls=(), policy_version=len(found)))
        assert found == [0, 1, 2]


class Head(LocalServer):
    """A Gym head server whose policy changes."""

    def __init__(self, *configs: Any) -> None:
        super().__init__()
        self.configs = list(configs)

    async def answer(self, exchange: Exchange) -> bool:
        assert exchange.route == "/global_config_dict_yaml"
        config = self.configs.pop(0) if len(self.configs) > 1 else self.configs[0]
        return await exchange.send(200, orjson.dumps(yaml.safe_dump(config)))


async def test_the_policy_of_a_gym_head_is_found_with_its_key() -> None:
    key = "sk-policy-key"
    async with VllmServer(api_key=key) as server:
        early = {"policy_base_url": [None, None]}
        ready = {
            "policy_base_url": [f"{server.url}/v1", None],
            "policy_model_name": "tiny",
            "policy_api_key": key,
        }
        async with Head(early, ready) as head:
            config = PolicyConfig(gym_head=head.url, health_interval_s=0.05, ready_timeout_s=60)
            engine = open_engine(config)
            assert (await engine.info()).model == "tiny"
            assert key not in repr(engine.stats)
            await engine.aclose()


def test_a_gym_config_without_a_policy_is_the_users_error() -> None:
    with pytest.raises(ConfigError, match="has no policy_base_url"):
        policy_in({}, "http://head")
    found = policy_in({"policy_base_url": "http://a/v1", "policy_api_key": "x"}, "http://head")
    assert found is not None
    assert found.entry.urls == ("http://a/v1",)
    assert "x'" not in repr(found.api_key)


async def test_a_head_without_a_policy_is_told_at_once() -> None:
    async with Head({"some_server": {}}) as head:
        engine = open_engine(PolicyConfig(gym_head=head.url, ready_timeout_s=600))
        async with asyncio.timeout(60):
            with pytest.raises(ConfigError, match="has no policy_base_url"):
                await engine.info()
        await engine.aclose()


async def test_nobody_at_the_gym_head_is_told_after_the_deadline() -> None:
    config = PolicyConfig(
        gym_head="http://127.0.0.1:9", ready_timeout_s=0.3, health_interval_s=0.05
    )
    engine = open_engine(config)
    with pytest.raises(EngineError, match="Gym head server"):
        await engine.info()
    await engine.aclose()


async def test_a_broken_registry_file_is_told_and_mended_while_waiting(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text("{")
    async with VllmServer() as server:
        config = {"file": path, "health_interval_s": 0.05}
        engine = open_engine(PolicyConfig(**config, ready_timeout_s=0.3))
        with pytest.raises(EngineError, match="no registry entry"):
            await engine.info()
        await engine.aclose()
        engine = open_engine(PolicyConfig(**config, ready_timeout_s=60))
        waiting = asyncio.create_task(engine.info())
        await asyncio.sleep(0.1)
        path.write_text(json.dumps({"urls": [server.url], "model": "tiny"}))
        assert (await waiting).model == "tiny"
        await engine.aclose()


def test_a_config_file_path_is_taken_from_plain_data(tmp_path: Path) -> None:
    config = PolicyConfig.parse({"file": str(tmp_path / "a"), "wire": "completions"})
    assert source_of(config).watched
    assert config.file == tmp_path / "a"


@pytest.mark.verl
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_ray_actor_keeps_the_entry_for_whoever_names_it() -> None:
    import ray

    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray.init(
        address="local", _node_ip_address="127.0.0.1", include_dashboard=False, num_cpus=1
    )  # fmt: skip
    try:
        where = RayEntry(name="policy")
        assert read_ray(where) is None
        for version in (1, 2):
            entry = RegistryEntry(urls=("http://a", None), model="m", policy_version=version)
            publish_ray(where, entry)
            assert read_ray(where) == entry
        assert read_ray(RayEntry(name="policy", namespace="other")) is None
    finally:
        ray.shutdown()
