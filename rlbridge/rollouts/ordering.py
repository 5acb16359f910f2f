"""Sorts a data file by task and rollout without loading it: rows are copied one at a time."""

from itertools import pairwise

from rlbridge.durable import sync_folder
from rlbridge.rollouts.appending import AppendFile
from rlbridge.rollouts.index import Entry, entries_of, pack


def sort_rows(data: AppendFile, index: AppendFile) -> None:
    """Put the rows in order, by way of new files that replace the old ones.

    A process that dies between the two replacements leaves an index that doesn't fit, which the
    next start makes again. A full disk leaves both as they were.

    Raises:
        RunError: the disk is full.
    """
    entries = sorted(entries_of(index))
    if all(entry.offset <= after.offset for entry, after in pairwise(entries)):
        return
    drafts = [AppendFile(file.path.with_name(f".{file.path.name}.draft")) for file in (data, index)]
    rows, places = drafts
    try:
        for draft in drafts:
            draft.truncate(0)
        for entry in entries:
            offset = rows.append(data.read(entry.offset, entry.length))
            places.append(pack(Entry(entry.key, offset, entry.length, entry.crc)))
        for draft in drafts:
            draft.sync()
        rows.path.replace(data.path)
        places.path.replace(index.path)
        sync_folder(data.path.parent)
    finally:
        for draft in drafts:
            draft.close()
            draft.path.unlink(missing_ok=True)
