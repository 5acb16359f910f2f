"""Guarded discovery of plugins. A plugin that fails to import never breaks the others.

Good plugins are registered with pluggy; broken ones are kept with the reason, so that
`rlbridge plugins` can show both.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Any, Literal

import pluggy

from rlbridge.config import nearest
from rlbridge.errors import ConfigError, FrameworkMissingError, PluginError
from rlbridge.evaluators.evaluator import Evaluator, EvaluatorSpec
from rlbridge.hookspecs import PROJECT, Backend, Export, Framework, Hooks

Kind = Literal["framework", "evaluator", "plugin"]


@dataclass(frozen=True, slots=True)
class PluginReport:
    """One framework, one evaluator, or one plugin that could not be loaded.

    Attributes:
        name: of the framework or evaluator, or the entry point's when the plugin is broken.
        plugin: the entry point, as `module`.
        available: whether a run can use it now.
        summary: one line on what it is; empty for a broken plugin.
        version: the installed version of what it needs, if that is installed.
        reason: why it is not available; None if it is.
        install: the command that makes it available; None if there is nothing to install.
        kind: what it is: `framework`, `evaluator`, or `plugin` for a broken one.
    """

    name: str
    plugin: str
    available: bool
    summary: str = ""
    version: str | None = None
    reason: str | None = None
    install: str | None = None
    kind: Kind = "framework"


class Plugins:
    """The plugins of this environment, good and broken.

    Args:
        points: entry points to load; by default those of the group `rlbridge`.
    """

    def __init__(self, points: list[EntryPoint] | None = None) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self._frameworks: dict[str, tuple[Framework, str]] = {}
        self._evaluators: dict[str, tuple[EvaluatorSpec, str]] = {}
        self._broken: list[PluginReport] = []
        for point in entry_points(group=PROJECT) if points is None else points:
            self._load(point)

    def _load(self, point: EntryPoint) -> None:
        try:
            plugin = point.load()
            self._manager.register(plugin, name=point.name)
            self._manager.check_pending()
            frameworks = self._added_by(plugin, "rlbridge_frameworks", Framework)
            evaluators = self._added_by(plugin, "rlbridge_evaluators", EvaluatorSpec)
            self._refuse_known(evaluators)
            self._frameworks |= {item.name: (item, point.value) for item in frameworks}
            self._evaluators |= {item.name: (item, point.value) for item in evaluators}
        # A stranger's module may raise anything while it is imported; the reason is kept.
        except Exception as error:  # noqa: BLE001
            if self._manager.has_plugin(point.name):
                self._manager.unregister(name=point.name)
            reason = f"{type(error).__name__}: {error}"
            report = PluginReport(point.name, point.value, False, reason=reason, kind="plugin")
            self._broken.append(report)

    def _added_by(self, plugin: Any, hook: str, kind: type) -> list[Any]:
        others = [known for known in self._manager.get_plugins() if known is not plugin]
        caller = self._manager.subset_hook_caller(hook, others)
        found = [item for batch in caller() for item in batch]
        for item in found:
            if not isinstance(item, kind):
                where = f"{kind.__module__}.{kind.__name__}"
                raise PluginError(f"{hook} returned {item!r}; return a list of {where}")
        return found

    def _refuse_known(self, evaluators: list[EvaluatorSpec]) -> None:
        for spec in evaluators:
            if spec.name in self._evaluators:
                other = self._evaluators[spec.name][1]
                raise PluginError(f"the evaluator {spec.name!r} is {other}'s; name it otherwise")

    def framework_names(self) -> list[str]:
        """Names of all frameworks that some good plugin connects, installed or not."""
        return sorted(self._frameworks)

    def evaluator_names(self) -> list[str]:
        """Names of all evaluators that some good plugin adds, usable here or not."""
        return sorted(self._evaluators)

    def report(self) -> list[PluginReport]:
        """Every framework, every evaluator and every broken plugin, sorted by kind and name."""
        frameworks = [
            _report(item, plugin, "framework") for item, plugin in self._frameworks.values()
        ]
        evaluators = [
            _report(item, plugin, "evaluator") for item, plugin in self._evaluators.values()
        ]
        order = ("framework", "evaluator", "plugin")
        found = [*frameworks, *evaluators, *self._broken]
        return sorted(found, key=lambda item: (order.index(item.kind), item.name))

    def described(self, name: str) -> tuple[PluginReport, Framework | EvaluatorSpec]:
        """What `name` is, usable here or not.

        Raises:
            ConfigError: there is no framework or evaluator of that name, or its plugin is broken.
        """
        if name in self._frameworks:
            framework, plugin = self._frameworks[name]
            return _report(framework, plugin, "framework"), framework
        if name in self._evaluators:
            spec, plugin = self._evaluators[name]
            return _report(spec, plugin, "evaluator"), spec
        known = [*self.framework_names(), *self.evaluator_names()]
        raise ConfigError(self._unknown("framework or evaluator", name, known))

    def evaluator_spec(self, name: str) -> EvaluatorSpec:
        """The evaluator `name`, whose libraries are installed.

        Raises:
            ConfigError: no plugin adds an evaluator of that name.
            FrameworkMissingError: it needs what isn't installed; the message holds the command.
        """
        self.require_evaluator(name)
        spec, _ = self._evaluators[name]
        _refuse_missing("evaluator", spec)
        return spec

    def require_evaluator(self, name: str) -> None:
        """See that an evaluator has this name, usable here or not.

        Raises:
            ConfigError: no plugin adds one.
        """
        if name not in self._evaluators:
            raise ConfigError(self._unknown("evaluator", name, self.evaluator_names()))

    def evaluator(self, name: str, options: Mapping[str, Any] | None = None) -> Evaluator:
        """Make the evaluator `name`; whoever asks for it closes it.

        Args:
            name: see `rlbridge plugins`.
            options: its own, as plain data.

        Raises:
            ConfigError: there is none of that name, or an option is wrong.
            FrameworkMissingError: it needs what isn't installed; the message holds the command.
        """
        return self.evaluator_spec(name).make({} if options is None else options)

    def backend(self, name: str) -> Backend:
        """Load the backend of the framework `name`.

        Raises:
            ConfigError: no plugin connects a framework of that name.
            FrameworkMissingError: the framework isn't installed; the message holds the command.
        """
        return self._installed(name).load()

    def exporter(self, name: str) -> Callable[[Path, Path], Export]:
        """What turns checkpoints of the framework `name` into Hugging Face's format.

        Raises:
            ConfigError: there is no such framework, or it has no converter.
            FrameworkMissingError: the framework isn't installed; the message holds the command.
        """
        found = self._installed(name).exporter
        if found is None:
            raise ConfigError(f"framework {name!r} has no converter that rlbridge knows of")
        return found

    def _installed(self, name: str) -> Framework:
        if name not in self._frameworks:
            raise ConfigError(self._unknown("framework", name, self.framework_names()))
        framework, _ = self._frameworks[name]
        _refuse_missing("framework", framework)
        return framework

    def _unknown(self, kind: str, name: str, known: list[str]) -> str:
        for broken in self._broken:
            if broken.name == name:
                return f"the plugin {name!r} ({broken.plugin}) is broken: {broken.reason}"
        guess = nearest(name, known)
        hint = f"did you mean {guess!r}? " if guess else ""
        return f"no {kind} named {name!r}; {hint}known: {', '.join(known)}"


def _missing(item: Framework | EvaluatorSpec) -> list[str]:
    return [module for module in item.requires if importlib.util.find_spec(module) is None]


def _refuse_missing(kind: Kind, item: Framework | EvaluatorSpec) -> None:
    missing = _missing(item)
    if missing:
        raise FrameworkMissingError(
            f"{kind} {item.name!r} needs {', '.join(missing)}, which is not installed here; "
            f"install it with: {item.install}",
            install=item.install,
        )


def _report(item: Framework | EvaluatorSpec, plugin: str, kind: Kind) -> PluginReport:
    missing = _missing(item)
    return PluginReport(
        name=item.name,
        plugin=plugin,
        available=not missing,
        summary=item.summary,
        version=None if missing else _version(item),
        reason=f"not installed: {', '.join(missing)}" if missing else None,
        install=item.install if missing else None,
        kind=kind,
    )


def _version(item: Framework | EvaluatorSpec) -> str | None:
    if isinstance(item, Framework) and item.version is not None:
        try:
            return item.version()
        # A clone may be half a clone, and raise anything while it is imported.
        except Exception:  # noqa: BLE001
            return None
    if not item.requires:
        return None
    try:
        return version(item.requires[0].replace("_", "-"))
    except ModuleNotFoundError:  # PackageNotFoundError: importable from a path, not a distribution
        return None
