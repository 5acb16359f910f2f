import pytest

from rlbridge.errors import ConfigError
from rlbridge.evaluators.sandbox import require


@pytest.fixture(scope="session")
def sandbox() -> None:
    """Skips where there can be no sandbox."""
    try:
        require()
    except ConfigError as error:
        pytest.skip(str(error))
