"""Which transport a config names. An HTTP library is imported when it is the one chosen."""

import asyncio

from rlbridge.config import GymConfig
from rlbridge.errors import ConfigError
from rlbridge.gym.transport import Transport


def open_transport(config: GymConfig) -> Transport:
    """The transport that `config` names, for the running loop.

    Raises:
        ConfigError: an optional library is missing.
    """
    asyncio.get_running_loop()
    if config.transport == "aiohttp":
        from rlbridge.gym.aiohttp_transport import AiohttpTransport

        return AiohttpTransport(config)
    try:
        from rlbridge.gym.httpx_transport import HttpxTransport

        return HttpxTransport(config)
    except ImportError as error:  # http2=True without h2
        raise ConfigError(
            f"transport httpx: {error}; install it with `pip install 'rlbridge[http2]'`"
        ) from error
