"""Filing labels: each import of a golden JSON or a luminosity table becomes a new version, in one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import zarr

from dqmstream.errors import ArchiveError
from dqmstream.storage import layout
from dqmstream.storage.archive import Archive
from dqmstream.storage.columns import append_columns, append_line, read_column, subgroup
from dqmstream.storage.labels.golden import Golden
from dqmstream.storage.labels.luminosity import LuminosityTable
from dqmstream.storage.labels.versions import LABEL_COLUMNS, VERSION_COLUMNS, Labels, LabelVersion, label_versions


def file_golden(archive: Archive, golden: Golden) -> LabelVersion:
    """File a golden JSON as a new version, unless the newest version says the same."""
    run, first, last = golden.lines.T
    return _file(archive, "golden", golden.name, golden.sha256, {"run": run, "first": first, "last": last})


def file_luminosity(archive: Archive, table: LuminosityTable) -> LabelVersion:
    """File a luminosity table as a new version, unless the labels hold all of its values already.

    Raises ArchiveError for a table that names no runs.
    """
    if not table.has_runs:
        raise ArchiveError(f"{table.name} names no run (run_number): add that column, or import it with the run's maps")
    columns = {"run": table.run, "lumisection": table.lumisection, **table.values}
    return _file(archive, "luminosity", table.name, table.sha256, columns, lambda root: Labels(root).says(table))


def _file(
    archive: Archive,
    kind: str,
    name: str,
    sha256: str,
    columns: Mapping[str, np.ndarray],
    is_known: Callable[[zarr.Group], bool] = lambda root: False,
) -> LabelVersion:
    """File a version of labels, unless the newest says the same. is_known: whether labels of a root group say it already."""
    with archive.commits().begin() as change:
        root = change.root
        layout.check_version(root, archive.path)
        where = f"labels/{kind}"
        if where in root:
            group = subgroup(root, where)
        else:
            group = layout.make_table(root, where, "line", LABEL_COLUMNS[kind])
            layout.make_table(group, "versions", "version", VERSION_COLUMNS)
        before = read_column(group, "versions/sha256").tolist()
        if before and (before[-1] == sha256 or is_known(root)):
            same = [version for version, known in enumerate(before, start=1) if known == sha256]
            return LabelVersion(kind, same[-1] if same else len(before), name, False)
        version = len(before) + 1
        numbers = np.full(len(columns["run"]), version)
        append_columns(group, {**columns, "version": numbers})
        line: dict[str, str | int] = {"sha256": sha256, "name": name, "committed": time.time_ns()}
        append_line(subgroup(group, "versions"), VERSION_COLUMNS, line)
        change.commit(f"{kind} {version}: {name}", lambda committed: _newest(committed, kind) == version)
    return LabelVersion(kind, version, name, True)


def _newest(root: zarr.Group, kind: str) -> int:
    return max((label.version for label in label_versions(root) if label.kind == kind), default=0)
