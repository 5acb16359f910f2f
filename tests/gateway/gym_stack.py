"""NeMo Gym's agents, model servers and resources servers in one process; run by its own Python.

Usage: gym_stack.py SPEC, a JSON object: `build` (the folder of serve_nemo_gym.py), `resources`
(name to module, class and config) and `models` (name to upstream URL). Every resources server
gets a simple_agent before every model server. Prints one line of JSON, addresses by name, and
stops when its standard input ends.
"""

import asyncio
import importlib
import json
import os
import socket
import sys
import threading
from typing import Any

AGENT = ("responses_api_agents.simple_agent.app", "SimpleAgent")
MODEL = ("responses_api_models.vllm_model.app", "VLLMModel")


class Stack:
    """The servers, each with a socket of its own on loopback."""

    def __init__(self, build: Any) -> None:
        self._build = build
        self.addresses: dict[str, dict[str, Any]] = {}
        self._served: list[tuple[Any, socket.socket]] = []

    def add(self, name: str, module: str, kind: str, extra: Any, peers: list[str]) -> None:
        """Build a server that may call `peers`."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        port = listener.getsockname()[1]
        known = {peer: {"servers": {peer: self.addresses[peer]}} for peer in peers}
        app = self._build(module, kind, name, port, extra, known)
        self.addresses[name] = {"host": "127.0.0.1", "port": port}
        self._served.append((app, listener))

    async def serve(self) -> None:
        """Serve all of them until standard input ends."""
        uvicorn: Any = importlib.import_module("uvicorn")
        servers = [
            uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
            for app, _ in self._served
        ]

        def watch() -> None:
            os.read(0, 1)
            for server in servers:
                server.should_exit = True

        threading.Thread(target=watch, daemon=True).start()
        print(json.dumps(self.addresses), flush=True)
        sockets = [listener for _, listener in self._served]
        await asyncio.gather(
            *(server.serve(sockets=[one]) for server, one in zip(servers, sockets, strict=True))
        )


def main() -> None:
    """Build what the argument says and serve it."""
    spec = json.loads(sys.argv[1])
    sys.path.insert(0, spec["build"])
    stack = Stack(importlib.import_module("serve_nemo_gym").build)
    for name, (module, kind, extra) in spec["resources"].items():
        stack.add(name, module, kind, extra, [])
    for name, upstream in spec["models"].items():
        extra = {"base_url": upstream, "api_key": "none", "model": spec["model"],
                 "return_token_id_information": True, "uses_reasoning_parser": True}  # fmt: skip
        stack.add(name, *MODEL, extra, [])
    for resources in spec["resources"]:
        for model in spec["models"]:
            extra = {
                "max_steps": 6,
                "resources_server": {"type": "resources_servers", "name": resources},
                "model_server": {"type": "responses_api_models", "name": model},
            }
            stack.add(f"{resources}/{model}", *AGENT, extra, [resources, model])
    asyncio.run(stack.serve())


if __name__ == "__main__":
    main()
