"""Where the rlbridge that runs now was installed from, for the commands that run it again.

An index, a folder or a repository: what installers note of it (PEP 610) is what `uv run` is given,
so that a command that was printed gets this rlbridge and no other of its name.
"""

import json
import shlex
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

_NAME = "rlbridge"


def uv_option(extra: str = "") -> str:
    """What `uv run` needs for this rlbridge, quoted for a shell.

    Args:
        extra: of its extras.
    """
    extras = f"[{extra}]" if extra else ""
    made = _installed()
    origin = _origin(made)
    if made is None:  # on the path alone, as in a clone's own Python
        return f"--with {shlex.quote(_NAME + extras)}"
    if not origin:
        return f"--with {shlex.quote(f'{_NAME}{extras}=={made.version}')}"
    if origin.get("dir_info", {}).get("editable"):
        return f"--with-editable {shlex.quote(f'{folder()}{extras}')}"
    url = origin["url"]
    if vcs := origin.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f"--with {shlex.quote(f'{_NAME}{extras} @ {url}')}"


def folder() -> Path | None:
    """The folder that it was installed from; None if it was none."""
    origin = _origin(_installed())
    if "dir_info" not in origin:
        return None
    return Path(url2pathname(urlsplit(origin["url"]).path))


def _installed() -> Distribution | None:
    try:
        return distribution(_NAME)
    except PackageNotFoundError:
        return None


def _origin(made: Distribution | None) -> dict[str, Any]:
    """Installers' note of it; empty if it came from an index, by name."""
    text = made.read_text("direct_url.json") if made is not None else None
    return dict(json.loads(text)) if text else {}
