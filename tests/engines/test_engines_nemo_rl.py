"""NeMo-RL's server: the fake answers as the real one did, whole captured exchanges of it."""

import json
from pathlib import Path

import pytest

from rlbridge.testing import Exact, Parsers, VllmServer
from tests.engines.shapes import ask, unlike

VERSIONS = ("nemo_rl_v0.7.0", "nemo_rl_head")
CAPTURED = {
    version: json.loads(
        (Path(__file__).parent / "captures" / f"{version}.json").read_text(encoding="utf-8")
    )
    for version in VERSIONS
}
CASES = [(version, name) for version in VERSIONS for name in CAPTURED[version]["pairs"]]


def fake_of(version: str) -> VllmServer:
    return VllmServer(
        kind="nemo_rl",
        routes=frozenset({"chat"}),
        exact=Exact(0.8, 1.0),
        message_fields=version == "nemo_rl_head",
        max_model_len=CAPTURED[version]["made_with"]["max_model_len"],
        parsers=Parsers(tools=True, reasoning=True),
        answers="<think>Ah</think>Hello",
    )


@pytest.mark.parametrize(("version", "name"), CASES)
async def test_the_fake_answers_as_nemo_rls_server_did(version: str, name: str) -> None:
    pair = CAPTURED[version]["pairs"][name]
    async with fake_of(version) as fake:
        ours = await ask(fake.url, pair["request"])
    theirs = (pair["status"], pair["content_type"], pair["response"])
    assert unlike(theirs, ours) == []
