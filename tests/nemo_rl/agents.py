"""What stands for Gym in NeMo-RL's Gym path: its collector, and agents that ask over HTTP."""

import contextlib
import json
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

import rlbridge.testing
from rlbridge.contracts import wire
from rlbridge.testing import ByteTokenizer
from rlbridge.testing.exchange import Exchange, LocalServer
from rlbridge.testing.real_servers import SERVERS, nemo_gym_python

USER = {"role": "user", "content": "Hi"}
MORE = {"role": "user", "content": "More"}


class Agents:
    """Agents of several habits, which ask the policy at a base URL as Gym's model server does.

    `row["agent"]`: `plain` asks twice; `rewrites` changes its history in between; `sub_agent` also
    asks about something else, which its output doesn't show; `no_metadata` doesn't hand the row's
    metadata on; `fails` raises.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    def run_examples(self, examples: Sequence[dict[str, Any]], head_server_config: Any) -> Any:
        return self._tasks(examples)

    def _tasks(self, examples: Sequence[dict[str, Any]]) -> Iterator[Any]:
        async def one(row: dict[str, Any]) -> Any:
            if row["agent"] == "fails":
                raise RuntimeError("500 from /run")
            async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
                return row, await self._rollout(http, row)

        return (one(row) for row in examples)

    async def _rollout(self, http: httpx.AsyncClient, row: dict[str, Any]) -> dict[str, Any]:
        kind = row["agent"]
        first = await self._ask(http, row, [USER])
        shown = {**first, "content": "something else"} if kind == "rewrites" else first
        second = await self._ask(http, row, [USER, shown, MORE])
        if kind == "sub_agent":
            await self._ask(http, row, [{"role": "user", "content": "Do this for me"}])
        return {
            "responses_create_params": row["responses_create_params"],
            "response": {"output": [_item(first), _item(second)]},
            "reward": 1.0,
        }

    async def _ask(
        self, http: httpx.AsyncClient, row: dict[str, Any], messages: list[Any]
    ) -> dict[str, Any]:
        params = row["responses_create_params"]
        metadata = None if row["agent"] == "no_metadata" else params.get("metadata")
        body = {
            "model": "tiny",
            "messages": messages,
            "temperature": params["temperature"],
            "max_tokens": params["max_output_tokens"],
            "metadata": metadata,
        }
        answer = await http.post(f"{self._base_url}/chat/completions", json=body)
        answer.raise_for_status()
        message: dict[str, Any] = answer.json()["choices"][0]["message"]
        return message


class RunningAgent:
    """One of Gym's own agents, asked at `/run` as Gym's collector asks it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def run_examples(self, examples: Sequence[dict[str, Any]], head_server_config: Any) -> Any:
        async def one(row: dict[str, Any]) -> Any:
            async with httpx.AsyncClient(timeout=120, trust_env=False) as http:
                answer = await http.post(f"{self._url}/run", json=row)
                answer.raise_for_status()
                return row, answer.json()

        return (one(row) for row in examples)


async def _at_once() -> None:
    """What an agent does between two calls that has nothing to do."""


class AgentServer(LocalServer):
    """A Gym agent at `/run`, which asks the policy once, by the session it is given.

    Args:
        policy_url: base URL of what it asks, without /v1.
        habit: from the number of the request, from 0 on, words: `fails`, `masked`, `delegates` (a
            sub-agent checks the answer), `twice` (a second question behind the first); the reward
            is 1.0 where the first answer has an A.
        meanwhile: between the two calls of `twice`.
    """

    def __init__(
        self,
        policy_url: str,
        habit: Callable[[int], str],
        meanwhile: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        super().__init__()
        self._policy_url = policy_url
        self._habit = habit
        self._meanwhile = meanwhile
        self.runs: list[dict[str, Any]] = []

    async def answer(self, exchange: Exchange) -> bool:
        if (exchange.method, exchange.route) != ("POST", "/run"):
            return await exchange.send(404, {"detail": "Not Found"})
        row = json.loads(exchange.raw)
        habit = self._habit(len(self.runs))
        self.runs.append(row)
        if "fails" in habit:
            return await exchange.send(500, b"the sandbox is gone", "text/plain")
        params = row["responses_create_params"]
        messages = [await self._ask(params, params["input"])]
        if "delegates" in habit:
            check = f"Check {messages[0]['content']}!"
            await self._ask(params, [{"role": "user", "content": check}])
        if "twice" in habit:
            await self._meanwhile()
            messages.append(await self._ask(params, [*params["input"], *messages, MORE]))
        found = {
            "responses_create_params": params,
            "response": {"output": [_item(message) for message in messages]},
            "reward": float("A" in messages[0]["content"]),
            "mask_sample": "masked" in habit,
        }
        return await exchange.send(200, found)

    async def _ask(self, params: dict[str, Any], messages: list[Any]) -> dict[str, Any]:
        body = {
            "model": "policy",
            "messages": messages,
            "max_tokens": params["max_output_tokens"],
            "metadata": params["metadata"],
        }
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            reply = await http.post(f"{self._policy_url}/v1/chat/completions", json=body)
        reply.raise_for_status()
        message: dict[str, Any] = reply.json()["choices"][0]["message"]
        return message


@contextlib.contextmanager
def running_agent(policy_url: str, resources: str, model: str = "tiny") -> Iterator[str]:
    """Base URL of Gym's simple_agent with its own model server and a resources server."""
    script = Path(__file__).parents[1] / "gateway" / "gym_stack.py"
    spec = {
        "build": str(Path(rlbridge.testing.__file__).parent),
        "resources": {resources: SERVERS[resources]},
        "models": {"gateway": f"{policy_url}/v1"},
        "model": model,
    }
    command = [str(nemo_gym_python()), str(script), json.dumps(spec)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stack:
        assert stack.stdout is not None
        assert stack.stdin is not None
        line = next((text for text in stack.stdout if text.startswith("{")), "")
        assert line, "Gym's servers did not start"
        address = json.loads(line)[f"{resources}/gateway"]
        yield f"http://{address['host']}:{address['port']}"
        stack.stdin.close()
        stack.wait(30)


def _item(message: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "output_text", "text": message["content"] or "", "annotations": []}
    fields = {name: message[name] for name in wire.TOKEN_FIELDS if name in message}
    return {"type": "message", "role": "assistant", "content": [text], **fields}


def hf_byte_tokenizer() -> Any:
    """`ByteTokenizer` as Hugging Face has tokenizers: the same IDs, the same rendering."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ours = ByteTokenizer()
    vocab = {character: byte for byte, character in bytes_to_unicode().items()}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    marks = ours.added_tokens_decoder.values()
    core.add_tokens(
        [AddedToken(mark.content, special=mark.special, normalized=False) for mark in marks]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=ours.eos_token, pad_token="<|endoftext|>"
    )
    made.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    return made
