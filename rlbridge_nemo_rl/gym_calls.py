"""A rollout's calls as the gateway saw them, for our Gym actor. Does nothing without a gateway.

A rollout's session travels in `responses_create_params.metadata`, which Gym's simple_agent and
vllm_model hand on. Agents that don't hand it on are trained by the token fields of their output,
as without a gateway.
"""

import asyncio
import http.client
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from typing import Any

from rlbridge.contracts import wire
from rlbridge.contracts.codecs.files import rollout_from_json
from rlbridge.contracts.rollout import Rollout
from rlbridge.errors import ContractError
from rlbridge_nemo_rl.agent_rewards import ORIGIN

GATEWAY = "rlbridge_gateway"
"""Key of our Gym actor's config: the gateway's URL."""
AGENTS = "rlbridge_agents"
"""Key of the actor's config where agents run already: of each its `url` and `rlbridge_gateway`."""
CLIENT = "rlbridge_client"
"""Likewise: the client's config without its URLs (`GymConfig`)."""
SESSION_KEY = "rlbridge_session"
"""Where the gateway looks for a rollout's session in `metadata`."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Calls:
    """The sessions of one batch of rollouts.

    Args:
        url: the gateway's; None for none.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._sessions: list[str] = []

    def in_session(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row as an agent gets it; with a gateway it names a session of its own."""
        row = {key: value for key, value in row.items() if key != ORIGIN}
        if self._url is None:
            return row
        self._sessions.append(uuid.uuid4().hex)
        params = dict(row[wire.RESPONSES_CREATE_PARAMS])
        params["metadata"] = {**(params.get("metadata") or {}), SESSION_KEY: self._sessions[-1]}
        return {**row, wire.RESPONSES_CREATE_PARAMS: params}

    async def of(self, row: Mapping[str, Any]) -> Rollout | str | None:
        """The calls of a row's rollout; None if none came in its session.

        Returns:
            Instead of them why they can't be trained on, where the gateway says so or doesn't
            answer.
        """
        if self._url is None:
            return None
        session = row[wire.RESPONSES_CREATE_PARAMS]["metadata"][SESSION_KEY]
        try:
            answer = await asyncio.to_thread(ask, "GET", f"{self._url}/s/{session}/rollout")
            document = json.loads(answer)
            if document["masked"] is not None:
                return f"the gateway masks this rollout: {document['masked']}"
            return rollout_from_json(document["rollout"])
        except urllib.error.HTTPError as error:
            return None if error.code == 404 else f"the gateway can't tell its calls: {error}"
        except (OSError, http.client.HTTPException, ValueError, KeyError, ContractError) as error:
            return f"the gateway can't tell its calls: {error}"

    async def forget(self) -> None:
        """End the sessions; what was captured stays on disk."""
        await asyncio.gather(*(asyncio.to_thread(self._end, name) for name in self._sessions))

    def _end(self, session: str) -> None:
        try:
            ask("DELETE", f"{self._url}/s/{session}")
        except (OSError, http.client.HTTPException):
            return  # nobody opened it, or the gateway forgets it by itself


def ask(method: str, url: str, timeout_s: float = 60.0) -> bytes:
    """What the gateway answers; it is on loopback, whatever proxy the environment names.

    Raises:
        OSError: nobody answers, or an error (`urllib.error.HTTPError`).
    """
    request = urllib.request.Request(url, method=method)  # noqa: S310 # our own gateway
    with _DIRECT.open(request, timeout=timeout_s) as answer:
        found: bytes = answer.read()
        return found
