"""NeMo Gym's head server as the gateway answers it, so that Gym's own clients find us by name.

Gym's client reads `/global_config_dict_yaml` as a YAML document inside a JSON string
(`OmegaConf.create(json.loads(text))`, nemo-gym 0.4.0) and looks servers up in it by name, three
levels deep. Ours holds addresses and names; a key or a token never stands in it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

MODEL_NAME: Final = "policy_model"
RESOURCES_NAME: Final = "resources"
_MODEL_KIND: Final = ("responses_api_models", "vllm_model")
_AGENT_KIND: Final = ("responses_api_agents", "simple_agent")
_RESOURCES_KIND: Final = ("resources_servers", "resources")


@dataclass(frozen=True, slots=True)
class Head:
    """What the gateway says of itself and of the reward server behind it.

    Attributes:
        agents: names under which the gateway answers `/run`; rows say them in `agent_ref.name`.
        model: the policy's name.
        gym_url: base URL of the resources server; empty where there is none.
    """

    agents: tuple[str, ...]
    model: str = ""
    gym_url: str = ""

    def global_config(self, host: str, port: int) -> str:
        """The global config as YAML; answer it as a JSON string.

        Args:
            host: by which the asking client reached the gateway.
            port: likewise.
        """
        address = {"host": host, "port": port}
        config: dict[str, Any] = {
            "head_server": address,
            "policy_base_url": f"{_url(host, port)}/v1",
            "policy_model_name": self.model,
            MODEL_NAME: _server(_MODEL_KIND, {**address, "model": self.model}),
        }
        for name in self.agents:
            uses = {"model_server": {"type": _MODEL_KIND[0], "name": MODEL_NAME}}
            config[name] = _server(_AGENT_KIND, {**address, **uses})
        if self.gym_url:
            config[RESOURCES_NAME] = _server(_RESOURCES_KIND, _address(self.gym_url))
        return yaml.safe_dump(config, sort_keys=False)

    def server_instances(self, host: str, port: int) -> list[dict[str, Any]]:
        """The servers one by one, as Gym's `gym status` prints them."""
        servers = [(MODEL_NAME, _MODEL_KIND[0]), *((name, _AGENT_KIND[0]) for name in self.agents)]
        return [
            {
                "process_name": name,
                "server_type": kind,
                "name": name,
                "host": host,
                "port": port,
                "url": _url(host, port),
                "pid": os.getpid(),
                "status": "success",
            }
            for name, kind in servers
        ]


def reached_at(scope: Mapping[str, Any], headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, int]:
    """Host and port by which a client reached us: its Host header, else the socket's address."""
    host, port = scope.get("server") or ("127.0.0.1", 80)
    for name, value in headers:
        if name == b"host":
            told = urlsplit("//" + value.decode("latin-1"))
            try:
                return told.hostname or host, told.port or port or 80
            except ValueError:  # a port that is no number
                break
    return host, port or 80


def _server(kind: tuple[str, str], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {kind[0]: {kind[1]: {"entrypoint": "app.py", **fields}}}


def _address(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {"host": parts.hostname, "port": parts.port or (443 if parts.scheme == "https" else 80)}


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
