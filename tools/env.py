#!/usr/bin/env python3
"""Make the environments that `make` uses. Standard library only; run by any Python 3.9+.

    tools/env.py train    .venv      Python 3.11: rlbridge, verl, vLLM's CPU build, CPU torch
    tools/env.py gym      .venv-gym  Python 3.12+: nemo-gym, for the tests against real servers
    tools/env.py browser  Debian's Chromium and its driver, for tests of pages (needs root)
    tools/env.py pins     write tools/constraints.txt again from pyproject.toml

uv installs in a minute what takes pip ten. It is taken from PATH, else from a small environment
of its own (.venv-uv). An environment whose inputs haven't changed is left alone. The training
environment never ends with a CUDA torch: the script checks, and fails if it does.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
STAMP = ".rlbridge-stamp"
GYM = ["nemo-gym==0.4.0", "math-verify==0.8.0"]
NO_GYM = 75  # no Python 3.12+ here: the caller goes on without
NO_BROWSER = 75  # likewise


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def run(argv: list[str], env: dict[str, str] | None = None) -> None:
    result = subprocess.run(argv, cwd=ROOT, env={**os.environ, **(env or {})}, check=False)
    if result.returncode:
        sys.exit(f"setup: failed ({result.returncode}): {' '.join(argv)}")


def find_uv() -> str:
    found = shutil.which("uv")
    if found:
        return found
    home = ROOT / ".venv-uv"
    uv = home / "bin" / "uv"
    if not uv.exists():
        say("installing uv into .venv-uv")
        run([sys.executable, "-m", "venv", str(home)])
        run([str(home / "bin" / "python"), "-m", "pip", "install", "-qq", "uv>=0.5"])
    return str(uv)


def find_python(versions: list[str]) -> str | None:
    """A working interpreter of the first version found: on PATH, or among pyenv's."""
    for version in versions:
        candidates = [shutil.which(f"python{version}")]
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        candidates += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]
        for candidate in filter(None, candidates):
            # Some shims exist and don't run; ask, don't look.
            check = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
            answer = subprocess.run(
                [candidate, "-c", check], capture_output=True, text=True, check=False
            )
            if answer.returncode == 0 and answer.stdout.strip() == version:
                return candidate
    return None


def fingerprint(inputs: list[Path], extra: str) -> str:
    digest = hashlib.sha256(extra.encode())
    for path in inputs:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_fresh(home: Path, mark: str) -> bool:
    stamp = home / STAMP
    return stamp.exists() and stamp.read_text() == mark and (home / "bin" / "python").exists()


def make_train(device: str) -> None:
    home = ROOT / ".venv"
    inputs = [ROOT / "pyproject.toml", Path(__file__), TOOLS / "overrides.txt"]
    inputs += [TOOLS / "constraints.txt", TOOLS / "vllm-metadata" / "pyproject.toml"]
    mark = fingerprint(inputs, device)
    if is_fresh(home, mark):
        return
    python = find_python(["3.11"])
    if python is None:
        sys.exit("setup: the training environment needs Python 3.11 (verl and the CPU torch)")
    started = time.monotonic()
    uv = find_uv()
    say(f"building .venv for {device} with {python}")
    run([uv, "venv", "--quiet", "--clear", "--python", python, str(home)])
    install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python"]
    install += [str(home / "bin" / "python"), "--constraint", str(TOOLS / "constraints.txt")]
    env = {}
    if device == "cpu":
        install += ["--override", str(TOOLS / "overrides.txt")]
        # pip's own way of saying where local wheels are; elsewhere uv knows PyTorch's CPU index.
        if os.environ.get("PIP_FIND_LINKS"):
            env["UV_FIND_LINKS"] = os.environ["PIP_FIND_LINKS"]
        else:
            install += ["--torch-backend", "cpu"]
    extras = "verl,cpu,dev" if device == "cpu" else "verl,gpu,dev"
    packages = ["--editable", f".[{extras}]"]
    if device == "cpu":
        packages.append(str(TOOLS / "vllm-metadata"))
    run([*install, *packages], env)
    if device == "cpu":
        check_no_cuda(home)
    (home / STAMP).write_text(mark)
    say(f".venv is ready after {time.monotonic() - started:.0f} s")


def check_no_cuda(home: Path) -> None:
    code = (
        "import importlib.metadata as m, torch; "
        "bad = sorted(d.name for d in m.distributions() "
        "if d.name.startswith(('nvidia-', 'cuda-')) and d.name != 'nvidia-ml-py'); "
        "print('ok' if torch.version.cuda is None and not bad else (torch.__version__, bad))"
    )
    answer = subprocess.run(
        [str(home / "bin" / "python"), "-c", code], capture_output=True, text=True, check=False
    )
    if answer.stdout.strip() != "ok":
        sys.exit(
            "setup: this CPU environment ended with a CUDA torch or CUDA libraries: "
            f"{answer.stdout.strip()} {answer.stderr.strip()[-500:]}"
        )


def write_pins() -> None:
    """Resolve pyproject.toml anew and keep the versions, without saying where they come from."""
    uv, python = find_uv(), find_python(["3.11"])
    if python is None:
        sys.exit("setup: pins are made with Python 3.11")
    argv = [uv, "pip", "compile", "--quiet", "pyproject.toml", "--python", python]
    argv += ["--extra", "verl", "--extra", "cpu", "--extra", "dev", "--no-annotate", "--no-header"]
    argv += ["--override", str(TOOLS / "overrides.txt"), "--no-emit-index-url"]
    links = (
        {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    )
    env = {**os.environ, **links}
    out = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if out.returncode:
        sys.exit(f"setup: uv could not resolve: {out.stderr}")
    pins = [line.replace("+cpu", "") for line in out.stdout.splitlines() if "==" in line]
    head = "# Pins of the CPU training environment (Python 3.11); written by `make pins`."
    (TOOLS / "constraints.txt").write_text("\n".join([head, *pins]) + "\n")
    say(f"wrote {len(pins)} pins to tools/constraints.txt")


def make_gym() -> None:
    home = ROOT / ".venv-gym"
    mark = fingerprint([], " ".join(GYM))
    if is_fresh(home, mark):
        return
    python = find_python(["3.12", "3.13"])
    if python is None:
        say("no Python 3.12 or newer on PATH or under pyenv: tests against nemo-gym will skip")
        sys.exit(NO_GYM)
    started = time.monotonic()
    uv = find_uv()
    say(f"building .venv-gym (nemo-gym 0.4.0) with {python}")
    run([uv, "venv", "--quiet", "--clear", "--python", python, str(home)])
    target = ["--python", str(home / "bin" / "python")]
    run([uv, "pip", "install", "--quiet", "--compile-bytecode", *target, *GYM])
    (home / STAMP).write_text(mark)
    say(f".venv-gym is ready after {time.monotonic() - started:.0f} s")


def make_browser() -> None:
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        say("no chromium and chromedriver on PATH, and no way to install them: page tests skip")
        sys.exit(NO_BROWSER)
    say("installing Debian's chromium and chromium-driver")
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends"]
    packages = ["chromium", "chromium-driver"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    for argv in ([*install, *packages], ["apt-get", "update", "-qq"], [*install, *packages]):
        done = subprocess.run(
            argv, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False, **quiet
        )
        if shutil.which("chromium") and shutil.which("chromedriver"):
            return
    say(f"could not install chromium: {done.stderr.strip()[-300:]}: page tests skip")
    sys.exit(NO_BROWSER)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("which", choices=["train", "gym", "browser", "pins"])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    arguments = parser.parse_args()
    if arguments.which == "train":
        make_train(arguments.device)
    elif arguments.which == "gym":
        make_gym()
    elif arguments.which == "browser":
        make_browser()
    else:
        write_pins()


if __name__ == "__main__":
    main()
