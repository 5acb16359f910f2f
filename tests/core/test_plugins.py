"""Discovery of plugins: the broken ones are reported, the good ones work."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import orjson
import pytest

from rlbridge.errors import ConfigError, FrameworkMissingError
from rlbridge.plugins import Plugins

VERL = EntryPoint("verl", "rlbridge_verl.plugin", "rlbridge")

GOOD = """
from rlbridge.hookspecs import Framework, hookimpl
@hookimpl
def rlbridge_frameworks():
    return [Framework("toy", "a toy", ("toy_framework",), "pip install toy", lambda: "backend")]
"""
BROKEN = "import surely_not_installed_anywhere\n"
WRONG = """
from rlbridge.hookspecs import hookimpl
@hookimpl
def rlbridge_frameworks():
    return ["toy"]
"""
UNKNOWN_HOOK = """
from rlbridge.hookspecs import hookimpl
@hookimpl
def rlbridge_frameworkz():
    return []
"""


@pytest.fixture
def make_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name: str, source: str) -> EntryPoint:
        module = f"plugin_{name}_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(source)
        return EntryPoint(name, module, "rlbridge")

    return make


@pytest.mark.parametrize("source", [BROKEN, WRONG, UNKNOWN_HOOK])
def test_a_broken_plugin_is_reported_and_breaks_no_other(make_point, source: str) -> None:
    plugins = Plugins([make_point("bad", source), make_point("toy", GOOD), VERL])
    reports = {report.name: report for report in plugins.report()}
    assert not reports["bad"].available
    assert reports["bad"].reason
    assert "toy" in reports
    assert "verl" in reports


def test_a_missing_framework_is_unavailable_with_its_install_line(make_point) -> None:
    plugins = Plugins([make_point("toy", GOOD)])
    (report,) = plugins.report()
    assert (report.available, report.install) == (False, "pip install toy")
    with pytest.raises(FrameworkMissingError, match="pip install toy") as caught:
        plugins.backend("toy")
    assert caught.value.install == "pip install toy"


def test_an_installed_framework_loads_its_backend(make_point, tmp_path: Path) -> None:
    (tmp_path / "toy_framework.py").write_text("")
    plugins = Plugins([make_point("toy", GOOD)])
    assert plugins.report()[0].available
    assert plugins.backend("toy") == "backend"


def test_an_unknown_framework_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'verl'"):
        Plugins([VERL]).backend("verrl")


def test_asking_for_a_broken_plugin_tells_why_it_is_broken(make_point) -> None:
    with pytest.raises(ConfigError, match="surely_not_installed_anywhere"):
        Plugins([make_point("bad", BROKEN)]).backend("bad")


def test_plugins_json_lists_verl_with_its_install_line_where_verl_is_absent(
    tmp_path: Path,
) -> None:
    # An import hook that hides verl stands for an environment without it.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('verl', 'transfer_queue', 'torch', 'ray'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "def find_spec(name, package=None):\n"
        "    try: return real(name, package)\n"
        "    except ModuleNotFoundError: return None\n"
        "u.find_spec = find_spec\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "rlbridge", "plugins", "--json"],
        capture_output=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    verl = next(item for item in orjson.loads(result.stdout) if item["name"] == "verl")
    assert not verl["available"]
    assert "pip install" in verl["install"]


def test_importing_rlbridge_loads_no_framework_and_no_http_library() -> None:
    code = (
        "import sys, rlbridge, rlbridge_verl.plugin, rlbridge_nemo_rl.plugin; "
        "heavy = {'torch', 'ray', 'verl', 'vllm', 'nemo_rl', 'transformers', 'aiohttp', 'httpx', "
        "'fastapi'}; print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.decode().strip() == "[]"


EVALUATOR = """
from rlbridge.evaluators.evaluator import EvaluatorSpec
from rlbridge.hookspecs import hookimpl
@hookimpl
def rlbridge_evaluators():
    install = "pip install x"
    return [EvaluatorSpec({name!r}, "mine", dict, {{}}, requires={requires!r}, install=install)]
"""
OURS = EntryPoint("evaluators", "rlbridge.builtins", "rlbridge")


def test_an_evaluator_of_a_plugin_is_made_with_its_options(make_point) -> None:
    plugins = Plugins([OURS, make_point("mine", EVALUATOR.format(name="mine", requires=()))])
    assert plugins.evaluator("mine", {"a": 1}) == {"a": 1}
    kinds = {report.name: report.kind for report in plugins.report()}
    assert (kinds["mine"], kinds["math"]) == ("evaluator", "evaluator")


def test_a_missing_library_of_an_evaluator_is_told_with_its_install_line(make_point) -> None:
    source = EVALUATOR.format(name="mine", requires=("surely_not_installed",))
    plugins = Plugins([make_point("mine", source)])
    (report,) = plugins.report()
    assert (report.available, report.install) == (False, "pip install x")
    with pytest.raises(FrameworkMissingError, match="pip install x"):
        plugins.evaluator("mine")


def test_an_evaluator_s_name_is_taken_once(make_point) -> None:
    plugins = Plugins([OURS, make_point("mine", EVALUATOR.format(name="math", requires=()))])
    (broken,) = [report for report in plugins.report() if report.kind == "plugin"]
    assert broken.name == "mine"
    assert "'math'" in str(broken.reason)
    assert plugins.evaluator_spec("math").summary != "mine"


def test_a_plugin_that_adds_what_is_no_evaluator_is_broken(make_point) -> None:
    source = EVALUATOR.format(name="x", requires=()).replace(
        "[EvaluatorSpec", "[dict or EvaluatorSpec"
    )
    (report,) = Plugins([make_point("bad", source)]).report()
    assert not report.available
    assert "EvaluatorSpec" in str(report.reason)
