"""What lasts over a power cut. Refuses nothing: a file system's errors are its caller's."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Wait until names that were made, replaced or deleted in a folder are on disk.

    Raises:
        OSError: the folder isn't there, or its file system failed.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
