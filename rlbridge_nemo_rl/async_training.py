"""Async GRPO: NeMo-RL's own loop, and what it leaves to its caller. Changes nothing in it.

The loop prints the error that ends it and returns as if all were well; it waits without end for
rollouts that never come; and its collector reads the data once. Its timer is the one place where
it says what it is doing: `total_step_time` is a step, and an error goes out through it;
`exposed_generation` is the trainer waiting for rollouts and `weight_sync` the engines getting new
weights, in 0.6, 0.7 and the head alike.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rlbridge.errors import RunError
from rlbridge_nemo_rl import versions
from rlbridge_nemo_rl.stall import StallWatch

_STEP, _WAIT, _REFIT = "total_step_time", "exposed_generation", "weight_sync"
_STEPS, _MUST_SAVE_BY = "max_num_steps", "checkpoint_must_save_by"


class LoopWatch:
    """Hears from the loop's timer.

    Args:
        stall: is told when the trainer waits.
        begun: a file that is there once rollouts are collected; before that, processes start.
        ending: called when an error ends the loop, before it ends its workers.
        refitting: open while the engines' weights change.
    """

    def __init__(
        self,
        stall: StallWatch,
        begun: Path,
        ending: Callable[[], None],
        refitting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._stall = stall
        self._begun = begun
        self._ending = ending
        self._around = {_WAIT: stall.waiting, _REFIT: refitting}
        self._first_wait = contextlib.ExitStack()
        self.error: BaseException | None = None
        """What ended the loop."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Open around the loop: until its first step, it waits for a full buffer."""
        self._begun.unlink(missing_ok=True)  # an earlier run's
        with self._first_wait:
            self._first_wait.enter_context(self._stall.waiting(self._begun))
            yield

    @contextlib.contextmanager
    def timed(self, label: str) -> Iterator[None]:
        """Around what the timer calls `label`."""
        if label == _STEP:
            self._first_wait.close()
        try:
            with self._around.get(label, contextlib.nullcontext)():
                yield
        except BaseException as error:
            if label == _STEP:
                self.error = error
                self._ending()
            raise


def timer(original: type[Any], watch: LoopWatch, *args: Any, **kwargs: Any) -> Any:
    """NeMo-RL's `Timer`, overheard."""

    class Overheard(original):
        @contextlib.contextmanager
        def time(self, label: str, *args: Any, **kwargs: Any) -> Iterator[None]:
            with watch.timed(label), super().time(label, *args, **kwargs):
                yield

    return Overheard(*args, **kwargs)


def hand_over_weights(made: versions.Parts) -> None:
    """Give the engines the policy's weights before anybody asks them.

    NeMo-RL begins to collect before its own first refit (`async_grpo_train` of 0.6, 0.7 and the
    head), and vLLM begins with weights that nobody trained: whoever is quicker gets their answers.

    Args:
        made: by `setup`; without an engine apart there is nothing to hand over.
    """
    from nemo_rl.algorithms import grpo

    if made.policy_generation is not None:
        grpo.refit_policy_generation(made.policy, made.policy_generation, False)


def train_async(
    config: Any,
    arguments: tuple[Any, ...],
    extras: Mapping[str, Any],
    steps_done: Callable[[], int],
    watch: LoopWatch,
) -> None:
    """Run `async_grpo_train` to its end, and tell a good one from a bad one.

    Args:
        config: the `MasterConfig`.
        arguments: the loop's, by position.
        extras: more of them, by name, where this version takes them.
        steps_done: the last step that ended.
        watch: hears of the loop's waits and errors.

    Raises:
        RunError: the error that ended it, or that it ended early without one.
    """
    from nemo_rl.algorithms import grpo

    section = versions.section(config, "grpo")
    age = versions.value(versions.value(section, "async_grpo"), "max_trajectory_age_steps", 1)
    original = grpo.Timer
    grpo.Timer = functools.partial(timer, original, watch)
    try:
        with watch.watching():
            grpo.async_grpo_train(
                *arguments,
                max_trajectory_age_steps=age,
                **versions.known(grpo.async_grpo_train, extras),
            )
    finally:
        grpo.Timer = original
    if watch.error is not None:
        watch.error.with_traceback(None)  # printed already; it holds the loop's every variable
    if isinstance(watch.error, RunError):
        raise watch.error
    # With a deadline for its last checkpoint the loop may end before its last step.
    early = not versions.value(versions.section(config, "checkpointing"), _MUST_SAVE_BY)
    if watch.error is not None or (early and steps_done() < versions.value(section, _STEPS)):
        reason = f"{type(watch.error).__name__}: {watch.error}" if watch.error else "see its log"
        raise RunError(
            f"NeMo-RL's async loop ended after step {steps_done()}: {reason}"
        ) from watch.error
