"""Weights that change while agents play: what the gateways are told of it. Guesses no version.

NeMo-RL's vLLM server doesn't say which weights answered. Its async loop says in the launching
process when it changes them, so the gateways label what they capture: an answer that came while
the weights were changing, or began before and ended after it, is of no one version and gets none.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Protocol


class Labelling(Protocol):
    """A gateway that knows which weights answer; see `GymGateway`."""

    weights: int | None

    def serve(self, weights: int | None) -> None:
        """Tell it the version that the engines serve; None for none."""

    def wait_until_unlabelled(self) -> None:
        """Wait until it has heard that there is none."""


@contextlib.contextmanager
def refitting(gateways: Iterable[Labelling]) -> Iterator[None]:
    """Around a change of the weights: the version is one higher afterwards.

    Nothing is said of weights that nobody counts, and no version comes back where the change fails.

    Raises:
        RunError: a gateway ended, or doesn't hear of it.
    """
    counted = {gateway: gateway.weights for gateway in gateways}
    for gateway, weights in counted.items():
        if weights is not None:
            gateway.serve(None)
    for gateway, weights in counted.items():
        if weights is not None:
            gateway.wait_until_unlabelled()
    yield
    for gateway, weights in counted.items():
        if weights is not None:
            gateway.serve(weights + 1)
