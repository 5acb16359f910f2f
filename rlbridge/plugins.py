"""Guarded discovery of plugins. A plugin that fails to import never breaks the others.

Good plugins are registered with pluggy; broken ones are kept with the reason, so that
`rlbridge plugins` can show both.
"""

import importlib.util
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import pluggy

from rlbridge.config import nearest
from rlbridge.errors import ConfigError, FrameworkMissingError, PluginError
from rlbridge.hookspecs import PROJECT, Backend, Framework, Hooks


@dataclass(frozen=True, slots=True)
class PluginReport:
    """One framework, or one plugin that could not be loaded.

    Attributes:
        name: the framework's name, or the entry point's when the plugin is broken.
        plugin: the entry point, as `module`.
        available: whether a run can use it now.
        summary: one line on what it is; empty for a broken plugin.
        version: the framework's installed version, if it is installed.
        reason: why it is not available; None if it is.
        install: the command that makes it available; None if there is nothing to install.
    """

    name: str
    plugin: str
    available: bool
    summary: str = ""
    version: str | None = None
    reason: str | None = None
    install: str | None = None


class Plugins:
    """The plugins of this environment, good and broken.

    Args:
        points: entry points to load; by default those of the group `rlbridge`.
    """

    def __init__(self, points: list[EntryPoint] | None = None) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self._frameworks: dict[str, tuple[Framework, str]] = {}
        self._broken: list[PluginReport] = []
        for point in entry_points(group=PROJECT) if points is None else points:
            self._load(point)

    def _load(self, point: EntryPoint) -> None:
        try:
            plugin = point.load()
            self._manager.register(plugin, name=point.name)
            self._manager.check_pending()
            for framework in self._frameworks_of(plugin):
                self._frameworks[framework.name] = (framework, point.value)
        # A stranger's module may raise anything while it is imported; the reason is kept.
        except Exception as error:  # noqa: BLE001
            if self._manager.has_plugin(point.name):
                self._manager.unregister(name=point.name)
            reason = f"{type(error).__name__}: {error}"
            self._broken.append(PluginReport(point.name, point.value, False, reason=reason))

    def _frameworks_of(self, plugin: Any) -> list[Framework]:
        others = [known for known in self._manager.get_plugins() if known is not plugin]
        caller = self._manager.subset_hook_caller("rlbridge_frameworks", others)
        found = [framework for batch in caller() for framework in batch]
        for framework in found:
            if not isinstance(framework, Framework):
                raise PluginError(
                    f"rlbridge_frameworks returned {framework!r}; "
                    "return a list of rlbridge.hookspecs.Framework"
                )
        return found

    def framework_names(self) -> list[str]:
        """Names of all frameworks that some good plugin connects, installed or not."""
        return sorted(self._frameworks)

    def report(self) -> list[PluginReport]:
        """Every framework and every broken plugin, sorted by name."""
        good = [_report(framework, plugin) for framework, plugin in self._frameworks.values()]
        return sorted([*good, *self._broken], key=lambda item: item.name)

    def backend(self, name: str) -> Backend:
        """Load the backend of the framework `name`.

        Raises:
            ConfigError: no plugin connects a framework of that name.
            FrameworkMissingError: the framework isn't installed; the message holds the command.
        """
        if name not in self._frameworks:
            raise ConfigError(self._unknown(name))
        framework, _ = self._frameworks[name]
        missing = _missing(framework)
        if missing:
            raise FrameworkMissingError(
                f"framework {name!r} needs {', '.join(missing)}, which is not installed here; "
                f"install it with: {framework.install}",
                install=framework.install,
            )
        return framework.load()

    def _unknown(self, name: str) -> str:
        for broken in self._broken:
            if broken.name == name:
                return f"the plugin {name!r} ({broken.plugin}) is broken: {broken.reason}"
        guess = nearest(name, self.framework_names())
        hint = f"did you mean {guess!r}? " if guess else ""
        return f"no framework named {name!r}; {hint}known: {', '.join(self.framework_names())}"


def _missing(framework: Framework) -> list[str]:
    return [module for module in framework.requires if importlib.util.find_spec(module) is None]


def _report(framework: Framework, plugin: str) -> PluginReport:
    missing = _missing(framework)
    return PluginReport(
        name=framework.name,
        plugin=plugin,
        available=not missing,
        summary=framework.summary,
        version=None if missing else _version(framework.requires[0]),
        reason=f"not installed: {', '.join(missing)}" if missing else None,
        install=framework.install if missing else None,
    )


def _version(module: str) -> str | None:
    try:
        return version(module.replace("_", "-"))
    except ModuleNotFoundError:  # PackageNotFoundError: importable from a path, not a distribution
        return None
