"""Opens an evaluator as a Gym server; `rlbridge.serving` runs it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from rlbridge.errors import FrameworkMissingError
from rlbridge.evaluators.evaluator import EvaluatorSpec


def open_app(spec: EvaluatorSpec, options: Mapping[str, Any]) -> AbstractAsyncContextManager[Any]:
    """Make the evaluator; the ASGI app that serves it, which closes it at the end.

    Raises:
        ConfigError: an option is wrong.
        FrameworkMissingError: the extra `gateway` isn't installed.
    """
    try:
        from rlbridge.gym.embedded.server import evaluator_app
    except ImportError as error:
        install = "pip install 'rlbridge[gateway]'"
        raise FrameworkMissingError(
            f"the embedded Gym needs {error.name}; install it with `{install}`", install=install
        ) from error
    evaluator = spec.make(options)

    @asynccontextmanager
    async def opening() -> AsyncIterator[Any]:
        try:
            yield evaluator_app(spec, evaluator)
        finally:
            await evaluator.aclose()

    return opening()
