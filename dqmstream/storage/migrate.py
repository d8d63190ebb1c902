"""Migration of an archive from an older layout: one step for each version, all in one commit, before the first write.

Older snapshots stay as they were written, so readers know every version up to the present one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import zarr

from dqmstream.storage import layout
from dqmstream.storage.columns import length_of, number


def migrate(root: zarr.Group) -> int:
    """Bring the archive with this root group to the present layout, in the group's session. Returns the version before.

    Nothing is written if that is the present one. The caller commits, while it holds the lock.
    """
    before = version = number(root, "layout_version")
    while version < layout.LAYOUT_VERSION:
        STEPS[version](root)
        version += 1
    if version != before:
        root.attrs["layout_version"] = version
    return before


def _add_produced(root: zarr.Group) -> None:
    """Version 1 to 2: version 1 did not keep when the broker took a message, so it is unknown for all rows."""
    for _, _, log in layout.logs(root):
        layout.make_column(log, "produced", "row", layout.ROW_COLUMNS, length=length_of(log, "run"))


STEPS: Mapping[int, Callable[[zarr.Group], None]] = {1: _add_produced}
"""Step from each version to the next."""
