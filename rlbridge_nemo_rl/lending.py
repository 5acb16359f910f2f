"""Our packages for workers of other Python environments, by PYTHONPATH, which NeMo-RL forwards."""

import functools
import os
import shutil
from pathlib import Path


@functools.lru_cache
def lent_source(run_dir: Path) -> str:
    """PYTHONPATH with a folder in front that holds copies of our packages alone.

    A whole site-packages on the path would put its other libraries before the workers' own, and
    links would lead into uv's cache, which workers on other nodes don't have.

    Args:
        run_dir: gets the folder, `python`; where there are several nodes, all of them see it.
    """
    import rlbridge
    import rlbridge_nemo_rl

    folder = (run_dir / "python").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for package in (rlbridge, rlbridge_nemo_rl):
        copy = folder / package.__name__
        shutil.rmtree(copy, ignore_errors=True)
        source = Path(str(package.__file__)).resolve().parent
        # A worker of the run before may still write its bytecode there while we delete.
        pattern = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, copy, ignore=pattern, dirs_exist_ok=True)
    paths = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(path for path in paths if path)
