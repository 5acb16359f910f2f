"""Steps, for our environments: which one it is, and what became of its rewards.

NeMo-RL tells environments neither. Refuses nothing: an environment that is just being restarted
has no figures to tell, and that stops no run.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

_METRICS_TIMEOUT_S = 10.0


class Steps:
    """Announces steps to environments that want to hear of them (`set_step`), and counts.

    Args:
        environments: NeMo-RL's, ours and others; each may be there several times.
        done: steps that ended before.
        ended: called at the end of each step, with its number.
    """

    def __init__(
        self, environments: Iterable[Any], done: int, ended: Callable[[int], None]
    ) -> None:
        unique = {id(env): env for env in environments}.values()
        self._ours = [env for env in unique if hasattr(env, "set_step")]
        self._ended = ended
        self.done = done
        """The last step that ended."""
        self._announce()

    def end(self, step: int) -> Mapping[str, float]:
        """Figures of the step that ended, added up; the next one is announced."""
        import ray

        found: dict[str, float] = {}
        asked = [env.global_post_process_and_metrics.remote({}) for env in self._ours]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_METRICS_TIMEOUT_S)
        for reference in answered:
            for name, value in ray.get(reference)[1].items():
                found[name] = found.get(name, 0.0) + value
        self.done = step
        self._announce()
        self._ended(step)
        return found

    def _announce(self) -> None:
        for env in self._ours:
            env.set_step.remote(self.done + 1)
