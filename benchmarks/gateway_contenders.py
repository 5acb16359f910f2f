"""The servers that `benchmarks.gateway` compares, each in a process of its own."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stub_engine import Answer
from benchmarks.templates import CHATML
from benchmarks.tokenizers import byte_bpe
from rlbridge.testing.real_servers import running_vllm_model

QUESTION = "what is the weather in the long day after the first word? "
REPLY = "the weather is what people call water in the long time after it has been made. " * 2


@dataclass(frozen=True)
class Contender:
    """A server under test.

    Attributes:
        name: for the report.
        url: base URL.
        pid: its process.
        path: the route of a session's calls.
        fields: what an ordinary client of it adds to a request.
    """

    name: str
    url: str
    pid: int
    path: Callable[[str], str]
    fields: dict[str, object]


def direct(url: str, pid: int) -> Contender:
    """The engine itself, asked for tokens as a careful client would."""
    fields: dict[str, object] = {"logprobs": True, "return_token_ids": True}
    return Contender("direct", url, pid, lambda _session: "/v1/chat/completions", fields)


def make_tokenizer(folder: Path) -> Answer:
    """Write a tokenizer with a chat template to `folder`; what the stub says in its words."""
    tokenizer = byte_bpe(CHATML)
    tokenizer.save_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    sampled = tokenizer.encode(REPLY.strip(), add_special_tokens=False)
    return Answer(REPLY.strip(), [*sampled, tokenizer.eos_token_id], prompt)


@contextlib.contextmanager
def running_gateway(
    upstream: str | None, tokenizer: Path, captures: Path, *options: str, port: int = 0
) -> Iterator[Contender]:
    """Our gateway with capture on.

    Args:
        upstream: base URL of the engine; None leaves it to a config file among the options.
        tokenizer: folder.
        captures: folder.
        options: further ones of `rlbridge gateway serve`.
        port: 0 for any free one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        ready, log = Path(scratch) / "ready.json", Path(scratch) / "log"
        command = [
            sys.executable, "-m", "rlbridge", "gateway", "serve", *options,
            *(() if upstream is None else ("--policy", upstream)),
            "--tokenizer", str(tokenizer), "--capture-dir", str(captures), "--port", str(port),
            "--ready-file", str(ready), "--exit-with-parent",
        ]  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            url = _wait(process, ready, log)
            yield Contender(
                "gateway", url, process.pid, lambda session: f"/s/{session}/v1/chat/completions", {}
            )
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def running_nemo_gym_model(upstream: str, model: str) -> Iterator[Contender]:
    """NeMo Gym's `vllm_model` in training mode: token IDs by `/tokenize` and logprobs."""
    with running_vllm_model(f"{upstream}/v1", model) as (url, pid):
        yield Contender("nemo_gym", url, pid, lambda _session: "/v1/chat/completions", {})


def _wait(
    process: "subprocess.Popen[bytes]", ready: Path, log: Path, timeout_s: float = 300
) -> str:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if ready.exists():
            return str(json.loads(ready.read_text())["url"])
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the gateway did not start: {log.read_text()[-3000:]}")
