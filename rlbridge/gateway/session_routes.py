"""Sessions over HTTP: open one, look at its rollout and training sequences, end it."""

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from rlbridge.contracts.codecs.files import rollout_to_json
from rlbridge.contracts.rollout import Rollout
from rlbridge.contracts.sequence import TrainingSequence
from rlbridge.gateway.gateway import Gateway
from rlbridge.onpolicy.build import Built, build

Name = Annotated[str, Path(description="the session's ID", max_length=128)]


class NewSession(BaseModel):
    """What a session may be opened with."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(default="", max_length=128, description="empty for a new one")
    group_id: str = Field(default="", description="rollouts of one prompt share it")
    metadata: dict[str, Any] = Field(default_factory=dict, description="kept with the rollout")


def session_router(gateway: Gateway) -> APIRouter:
    """The routes under `/s`."""
    router = APIRouter(tags=["sessions"])

    async def open_session(new: Annotated[NewSession, Body()] = NewSession()) -> Response:  # noqa: B008
        """Open a session, or find it; its ID goes into the URL of its calls."""
        name = await gateway.open_session(new.id, group_id=new.group_id, metadata=new.metadata)
        return _json({"id": name, "base_url": f"/s/{name}/v1"})

    async def rollout(
        session: Name,
        turns: Annotated[bool, Query(description="false leaves the captured calls out")] = True,
    ) -> Response:
        """The session's calls as captured, and the training sequences built of them."""
        found = await gateway.rollout(session)
        return Response(
            await asyncio.to_thread(_document, found, turns), media_type="application/json"
        )

    async def end_session(session: Name) -> Response:
        """Forget a session; what was captured stays on disk."""
        await gateway.end_session(session)
        return _json({"id": session, "deleted": True})

    router.add_api_route("/s", open_session, methods=["POST"])
    router.add_api_route("/s/{session}/rollout", rollout, methods=["GET"])
    router.add_api_route("/s/{session}", end_session, methods=["DELETE"])
    return router


def _document(rollout: Rollout, turns: bool) -> bytes:
    built = build(rollout)
    document: dict[str, Any] = {
        "session": rollout.rollout_id,
        "masked": rollout.masked,
        "calls": len(rollout.turns),
        "sequences": [_sequence(sequence) for sequence in built.sequences],
        "dropped": _dropped(built),
    }
    if turns:
        document["rollout"] = rollout_to_json(rollout)
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _sequence(sequence: TrainingSequence) -> dict[str, Any]:
    return {
        "token_ids": sequence.token_ids,
        "logprobs": sequence.logprobs,
        "mask": sequence.mask,
        "provenance": sequence.provenance,
        "turn": sequence.turn,
        "weight": sequence.weight,
        "prompt_length": sequence.prompt_length,
    }


def _dropped(built: Built) -> list[dict[str, Any]]:
    return [
        {"turn": drop.turn, "reason": drop.reason.value, "kept": drop.kept}
        for drop in built.dropped
    ]


def _json(document: object) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
