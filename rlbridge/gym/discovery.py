"""Which servers a NeMo Gym head server knows. Its config holds API keys: nothing here logs it."""

from dataclasses import dataclass
from typing import Any

import orjson
import yaml

from rlbridge.contracts.reward import FailureClass
from rlbridge.contracts.wire import ROUTE_GLOBAL_CONFIG, ROUTE_SERVER_INSTANCES
from rlbridge.gym.client import GymClient
from rlbridge.gym.replies import Failure, Reply, read_json, status_failure

_KINDS = ("resources_servers", "responses_api_agents", "responses_api_models")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """One server behind a head server.

    Attributes:
        name: its name in the config; agents refer to servers by it.
        kind: resources_servers, responses_api_agents or responses_api_models.
        implementation: the directory it comes from (`mcqa`, `simple_agent`...).
        url: its base URL.
    """

    name: str
    kind: str
    implementation: str
    url: str


async def discover(head: GymClient) -> list[ServerInfo]:
    """The servers of the head server at `head`'s URL, from its global config.

    Takes the config as NeMo Gym sends it, a YAML document inside a JSON string, and as plain
    YAML or JSON.

    Raises:
        GymError: no answer, or one that is no config.
    """
    config = await head.get_json(ROUTE_GLOBAL_CONFIG, read_global_config)
    found = []
    for name, entry in config.items():
        if not isinstance(entry, dict):
            continue
        for kind in _KINDS:
            for implementation, fields in (entry.get(kind) or {}).items():
                if isinstance(fields, dict) and fields.get("port"):
                    url = f"http://{fields.get('host', '127.0.0.1')}:{fields['port']}"
                    found.append(ServerInfo(str(name), kind, str(implementation), url))
    return found


async def running_instances(head: GymClient) -> list[ServerInfo]:
    """The servers that the head server at `head`'s URL has running, from /server_instances.

    Raises:
        GymError: no answer, or one that is no list of instances.
    """
    entries = await head.get_json(ROUTE_SERVER_INSTANCES, _read_instances)
    return [
        ServerInfo(
            str(entry.get("process_name", "")),
            str(entry.get("server_type", "")),
            str(entry.get("name", "")),
            str(entry.get("url", "")),
        )
        for entry in entries
    ]


def read_global_config(reply: Reply) -> dict[str, Any] | Failure:
    """The config in an answer of /global_config_dict_yaml, or why there is none."""
    if reply.status != 200:
        return status_failure(reply)
    try:
        text: Any = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        text = reply.body.decode("utf-8", "replace")
    if isinstance(text, str):
        try:
            text = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError):  # its message would quote the document
            text = None
    if isinstance(text, dict):
        return text
    detail = "the answer is neither YAML nor YAML inside a JSON string"
    return Failure(FailureClass.MALFORMED_BODY, detail, reply.status)


def _read_instances(reply: Reply) -> list[dict[str, Any]] | Failure:
    entries = read_json(reply)
    if isinstance(entries, Failure):
        return entries
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        return entries
    return Failure(FailureClass.MALFORMED_BODY, "the answer is no list of servers", reply.status)
