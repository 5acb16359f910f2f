"""`rlbridge run`: train, with rewards from a Gym server."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlbridge.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from rlbridge.hookspecs import NativeRun
    from rlbridge.plugins import Plugins
    from rlbridge.run_config import RunConfig

INTERRUPTED = 130


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Keys of the config by dotted path, values in YAML: trainer.steps=10",
        show_default=False,
    ),
]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="The run's YAML file.")]
Framework = Annotated[
    str, typer.Option("--framework", "-f", help="What trains: see `rlbridge plugins`.")
]
GymUrl = Annotated[
    str | None, typer.Option(help="Rewards from this server instead of the config's.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint in output_dir.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the native config and command; start nothing.")
]


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    framework: Framework = "verl",
    gym_url: GymUrl = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Train a policy with rewards from a Gym server.

    Checks everything that can be checked in seconds, then trains and shows each step: mean
    reward, valid and invalid rewards, response length, tokens a second; of SFT and DPO the loss.
    Leaves metrics.jsonl, summary.json, a picture (reward.png or loss.png) and the record of every
    reward in the run's output_dir.

    A config names at least a policy, rewards and rows (all keys: docs/reference/config.md):

        policy: {path: models/Qwen2.5-1.5B-Instruct}

        gym: {serve: math}

        data: {train: rows.jsonl, prompt: generic/math}

    The same file runs on every framework; a key that one can't honour is an error.

        rlbridge run --config examples/demo.yaml

        rlbridge run --config examples/demo.yaml --gym-url http://127.0.0.1:8000 trainer.steps=10

        rlbridge run --config examples/demo.yaml verl.actor_rollout_ref.actor.clip_ratio=0.3

        rlbridge run --framework nemo_rl --config examples/nemo_rl/math.yaml --dry-run

    Exit status: 0 when all steps are done, 1 when the run stopped, 130 on Ctrl-C.
    """
    from rich.console import Console

    from rlbridge.launch.run import Run
    from rlbridge.plugins import Plugins
    from rlbridge.run_config import load_run_config

    loaded = load_run_config(config, _changes(overrides or [], gym_url, resume))
    plugins = Plugins()
    _check_served(plugins, loaded.gym.serve)
    backend = plugins.backend(framework)
    output = loaded.trainer.output_dir
    if dry_run:
        _print_native(backend.compile(loaded, output), loaded.gym.serve)
        changes = _changes(overrides or [], gym_url, resume)
        own = ["rlbridge", "run", "--framework", framework, "--config", str(config), *changes]
        _print_cluster(loaded, own)
        return
    console = Console()
    try:
        summary = Run(loaded, framework, backend, console).execute()
    except KeyboardInterrupt:
        console.print("stopped on request; everything this run started was ended")
        sys.exit(INTERRUPTED)
    _tell(summary, output, console)


def _check_served(plugins: "Plugins", name: str | None) -> None:
    """A wrong name shows now, not when the server is started."""
    try:
        if name is not None:
            plugins.require_evaluator(name)
    except ConfigError as error:
        raise ConfigError(f"gym.serve: {error}") from error


def _changes(overrides: list[str], gym_url: str | None, resume: bool) -> list[str]:
    """Options as overrides; the options come last and win."""
    changes = list(overrides)
    if gym_url is not None:
        changes += [f"gym.url={gym_url}", "gym.serve=null"]
    if resume:
        changes += ["trainer.resume=true"]
    return changes


def _tell(summary: dict[str, Any], output: Path, console: "Console") -> None:
    """The run in two lines."""
    if not summary["steps"]:
        raise ConfigError(f"the run took no step; see {output / 'train.log'}")
    text = _rewards_of(summary, output) or _losses_of(summary, output)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _rewards_of(summary: dict[str, Any], output: Path) -> str | None:
    """None for an algorithm without rewards."""
    first, last = summary["reward_first3"], summary["reward_last3"]
    if first is None or last is None:
        return None
    verify = summary["verify"]
    return (
        f"reward {first:.3f} (first 3 steps) → {last:.3f} (last 3); rewards: "
        f"{verify['valid']} valid, {verify['invalid']} invalid; {verify['attempts']} requests "
        f"sent, {verify['shared']} answers shared by equal responses\n"
        f"see {output / 'summary.json'} and {output / 'reward.png'}"
    )


def _losses_of(summary: dict[str, Any], output: Path) -> str:
    first, last, validated = (
        summary[name] for name in ("loss_first3", "loss_last3", "val_loss_last")
    )
    see = f"see {output / 'summary.json'}"
    if first is None or last is None:
        return f"{summary['steps']} steps; {see}"
    text = f"loss {first:.4f} (first 3 steps) → {last:.4f} (last 3)"
    text += "" if validated is None else f"; validation loss {validated:.4f} at last"
    return f"{text}\n{see} and {output / 'loss.png'}"


def _print_native(native: "NativeRun", served: str | None) -> None:
    import yaml

    typer.echo(yaml.safe_dump(dict(native.config), sort_keys=False).rstrip())
    typer.echo("\n# The same by hand, with the framework's own entry point:")
    if served:
        typer.echo(f"# (first, in another shell: rlbridge gym serve {served} --port 18080)")
    typer.echo(native.by_hand)


def _print_cluster(config: "RunConfig", argv: list[str]) -> None:
    """What to type where the run doesn't stay on this machine."""
    if config.trainer.nodes == 1 and config.ray.address is None:
        return
    from rlbridge.launch.cluster import ray_job, slurm_script

    own = [word for word in argv if not word.startswith("ray.address=")]
    typer.echo("\n# On a Ray cluster that is up:")
    typer.echo(ray_job(own))
    typer.echo("\n# With Slurm: sbatch of this script")
    typer.echo(slurm_script(config, own, config.trainer.output_dir.name).rstrip())
