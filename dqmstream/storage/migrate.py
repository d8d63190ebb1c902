"""From an older layout to the present one: a step for each version, all in one commit, before the first write.

Snapshots stay as they were written, so what reads them takes every version up to the present one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import zarr

from dqmstream.storage import layout


def migrate(root: zarr.Group) -> int:
    """Bring the archive whose root this is to the present layout, in its session; returns the version that it had.

    Nothing is written where it has the present one. The caller commits, with the lock held.
    """
    before = version = int(root.attrs["layout_version"])
    while version < layout.LAYOUT_VERSION:
        STEPS[version](root)
        version += 1
    if version != before:
        root.attrs["layout_version"] = version
    return before


def _add_produced(root: zarr.Group) -> None:
    """1 to 2: when the broker took the message was not kept, so it is unknown of every row there is."""
    for _, feed in root["feeds"].groups():
        for _, log in feed.groups():
            layout.make_column(log, "produced", "row", layout.ROW_COLUMNS, length=log["run"].shape[0])


STEPS: Mapping[int, Callable[[zarr.Group], None]] = {1: _add_produced}
"""What makes the next version of each."""
