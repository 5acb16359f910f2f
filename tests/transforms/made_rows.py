"""Rollout rows for tests, in the forms Gym writes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

Row = dict[str, Any]

TOOL = {
    "type": "function",
    "name": "weather",
    "description": "Get the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": None,
}


def said(text: str, **more: Any) -> Row:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
            "content": content, **more}  # fmt: skip


def thought(text: str) -> Row:
    summary = [{"type": "summary_text", "text": text}]
    return {"id": "rs_1", "type": "reasoning", "summary": summary, "encrypted_content": None}


def called(arguments: str = '{"city": "Rome"}', call_id: str = "call_1", **more: Any) -> Row:
    return {"id": "fc_1", "type": "function_call", "name": "weather", "call_id": call_id,
            "arguments": arguments, **more}  # fmt: skip


def answered(output: str = "sunny", call_id: str = "call_1") -> Row:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def row(question: Any, output: Any, reward: Any = 1.0, **more: Any) -> Row:
    if isinstance(question, str):
        question = [{"type": "message", "role": "user", "content": question}]
    output = [said(output)] if isinstance(output, str) else output
    return {
        "responses_create_params": {"input": question, "tools": [], "temperature": None},
        "response": {"id": "r", "object": "response", "output": output},
        "reward": reward,
        **more,
    }


def group(task: int, rewards: Iterable[float], **more: Any) -> list[Row]:
    """Rollouts of one prompt."""
    return [
        row(f"What is {task}?", f"{task}, says {n}", reward, expected_answer=str(task),
            _ng_task_index=task, _ng_rollout_index=n,
            agent_ref={"type": "responses_api_agents", "name": "simple_agent"}, **more)
        for n, reward in enumerate(rewards)
    ]  # fmt: skip


def write(path: Path, rows: Iterable[Row]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in rows))
    return path


def read(path: Path) -> list[Row]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]
