"""Errors cross Ray actors, so every one of them pickles with all it carries."""

import inspect
import pickle

import pytest

import rlbridge
from rlbridge import errors

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.RLBridgeError)
]


@pytest.mark.parametrize("kind", ALL)
def test_an_error_pickles_with_its_message_and_attributes(kind: type[Exception]) -> None:
    error = kind("what happened")
    error.url = "http://127.0.0.1:1"  # type: ignore[attr-defined]
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is kind
    assert str(copy) == "what happened"
    assert vars(copy) == vars(error)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in ALL)


def test_public_names_are_sorted_and_there() -> None:
    assert rlbridge.__all__ == sorted(rlbridge.__all__)
    assert all(hasattr(rlbridge, name) for name in rlbridge.__all__)
