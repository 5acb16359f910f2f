"""What a command says when a library isn't there that only some commands need."""

from collections.abc import Iterator
from contextlib import contextmanager

from rlbridge.errors import FrameworkMissingError


@contextmanager
def gateway_extra(what: str = "this command") -> Iterator[None]:
    """Turn a missing library of the `gateway` extra into the command that installs it.

    Raises:
        FrameworkMissingError: an import failed.
    """
    try:
        yield
    except ImportError as error:
        install = "pip install 'rlbridge[gateway]'"
        raise FrameworkMissingError(
            f"{what} needs {error.name}; install it with `{install}`", install=install
        ) from error
