"""A policy's config to an engine: the one way in."""

from rlbridge.engines.config import PolicyConfig
from rlbridge.engines.discovery import source_of
from rlbridge.engines.http_engine import HttpEngine
from rlbridge.engines.pool import ReplicaPool


def open_engine(config: PolicyConfig) -> ReplicaPool:
    """The engine of a policy; nothing is asked before its first use. Close it with `aclose`.

    `engine = open_engine(PolicyConfig(url="http://127.0.0.1:8000"))`
    """
    return ReplicaPool(source_of(config), config, HttpEngine)
