"""The embedded servers by name; `rlbridge.serving` runs them."""

from typing import Any, Final

from rlbridge.errors import ConfigError, FrameworkMissingError

SERVERS: Final = ("arithmetic",)


def load_app(name: str) -> Any:
    """The ASGI app of the embedded server `name`.

    Raises:
        ConfigError: there is no such server.
        FrameworkMissingError: the extra `gateway` isn't installed.
    """
    if name not in SERVERS:
        raise ConfigError(f"no embedded Gym named {name!r}; there is {', '.join(SERVERS)}")
    try:
        from rlbridge.gym.embedded.server import arithmetic_app
    except ImportError as error:
        install = "pip install 'rlbridge[gateway]'"
        raise FrameworkMissingError(
            f"the embedded Gym needs {error.name}; install it with `{install}`", install=install
        ) from error
    return arithmetic_app()
