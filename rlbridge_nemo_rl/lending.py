"""Our packages for workers of other Python environments, by PYTHONPATH, which NeMo-RL forwards."""

import os
from pathlib import Path


def lent_source(run_dir: Path) -> str:
    """PYTHONPATH with a folder in front that holds links to our packages alone.

    A whole site-packages on the path would put its other libraries before the workers' own.

    Args:
        run_dir: gets the folder, `python`.
    """
    import rlbridge
    import rlbridge_nemo_rl

    folder = (run_dir / "python").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for package in (rlbridge, rlbridge_nemo_rl):
        link = folder / package.__name__
        link.unlink(missing_ok=True)
        link.symlink_to(Path(str(package.__file__)).resolve().parent)
    paths = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(path for path in paths if path)
