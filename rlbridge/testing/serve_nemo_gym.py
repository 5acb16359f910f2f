"""Serves one real NeMo Gym server by uvicorn alone; run by nemo-gym's own Python.

Without Ray and without a head server, on 127.0.0.1 only. Prints its port when it listens, and
stops when its standard input ends, so that it never outlives the tests.
"""

import asyncio
import importlib
import json
import os
import socket
import sys
import threading
from typing import Any


def build(
    module: str,
    class_name: str,
    name: str,
    port: int,
    extra: dict[str, Any],
    peers: dict[str, Any],
) -> Any:
    """The server's app, as its own entry point would build it.

    Args:
        module: of the server.
        class_name: of the server.
        name: its name in the global config.
        port: it listens on.
        extra: further fields of its config.
        peers: the servers it may call, by name, as the global config has them.
    """
    config_types = importlib.import_module("nemo_gym.config_types")
    server_utils = importlib.import_module("nemo_gym.server_utils")
    omegaconf = importlib.import_module("omegaconf")
    server_class = getattr(importlib.import_module(module), class_name)
    config_class = server_class.model_fields["config"].annotation
    fields = {"name": name, "host": "127.0.0.1", "port": port, "entrypoint": "app.py", **extra}
    if "domain" in config_class.model_fields:
        fields.setdefault("domain", "other")
    # An agent calls itself by its name, and its HTTP client reads the process's global config.
    own = {name: {"servers": {name: {"host": "127.0.0.1", "port": port}}}}
    known = omegaconf.OmegaConf.create({**peers, **own})
    global_config: Any = importlib.import_module("nemo_gym.global_config")
    global_config._GLOBAL_CONFIG_DICT = known
    client = server_utils.ServerClient(
        head_server_config=config_types.BaseServerConfig(host="127.0.0.1", port=11000),
        global_config_dict=known,
    )
    server = server_class(config=config_class(**fields), server_client=client)
    app = server.setup_webserver()
    server.setup_liveness(app)
    server.setup_exception_middleware(app)
    return app


def main() -> None:
    """Serve until standard input ends."""
    uvicorn = importlib.import_module("uvicorn")
    module, class_name, name, extra, peers = sys.argv[1:6]
    # Told that it is TCP: for no other does asyncio turn Nagle's delay off, 40 ms a call.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    port = listener.getsockname()[1]
    app = build(module, class_name, name, port, json.loads(extra), json.loads(peers))
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_keep_alive=30)
    server = uvicorn.Server(config)

    def watch() -> None:
        # Not sys.stdin.read(): a server that forks would find its lock held in every child.
        os.read(0, 1)
        server.should_exit = True

    threading.Thread(target=watch, daemon=True).start()
    sys.stdout.write(f"PORT {port}\n")
    sys.stdout.flush()
    asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main()
