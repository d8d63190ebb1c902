"""The data set of each run of an archive, so that maps of another data set never become revisions of the run.

An archive holds one map of a lumisection. Maps of ZeroBias and of JetHT of the same lumisection would replace each other.
Therefore an import stores the data set that the file names, as the reason of the run's start entry. Later maps of the run, from
files or messages, must be of that data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import zarr

from dqmstream.errors import InputError
from dqmstream.lumisection import RUN_FILE, check_source
from dqmstream.storage.archive import Archive
from dqmstream.storage.columns import length_of, read_column, subgroup
from dqmstream.storage.imports.run_file import RunFile
from dqmstream.storage.layout import IMPORT_FEED, ControlKind, feed_path


def are_one(name: str, other: str) -> bool:
    """Whether two names can mean the same data set. An empty name is unknown and can mean any.

    One name may be the short form (ZeroBias) of the other (/ZeroBias/Run2024C-PromptReco-v1/DQMIO#...).
    """
    if not name or not other or name == other:
        return True
    if name.startswith("/") == other.startswith("/"):
        return False
    short, full = sorted((name, other), key=lambda one: one.startswith("/"))
    return short == full.split("/")[1]


def check_one_import(runs: Sequence[RunFile]) -> None:
    """Raise InputError if two files are of one run and different data sets, or if a name cannot be that of a data set."""
    first: dict[int, RunFile] = {}
    for data in runs:
        for source in (data.source, data.dataset):
            try:
                check_source(source)
            except ValueError as error:
                raise InputError(f"{data.name}, run {data.run}: {error}") from error
        other = first.setdefault(data.run, data)
        if not are_one(data.dataset, other.dataset):
            raise InputError(
                f"{other.name} and {data.name} are two data sets of run {data.run}, {other.dataset} and {data.dataset}, and an "
                "archive holds one map of a lumisection: import each into an archive of its own"
            )


class ImportedDatasets:
    """Data sets of the files from which an archive's runs were imported.

    by_run: (data set, file) of each file that names a data set.
    """

    def __init__(self) -> None:
        self.by_run: dict[int, list[tuple[str, str]]] = {}
        self._files = 0

    def update(self, root: zarr.Group) -> None:
        """Read what was imported since the last call. root: root group of a snapshot that is not older than the last one."""
        table = subgroup(root, "imports")
        files = length_of(table, "run")
        if files == self._files:
            return
        control = subgroup(root, f"{feed_path(IMPORT_FEED, 0)}/control")
        begun = read_column(control, "kind") == ControlKind.START
        offsets, reasons = (read_column(control, name)[begun].tolist() for name in ("offset", "reason"))
        named: dict[int, str] = dict(zip(offsets, reasons, strict=True))
        columns = (read_column(table, name, self._files, files).tolist() for name in ("name", "run", "offset"))
        for file, run, offset in zip(*columns, strict=True):
            match = RUN_FILE.match(file)  # older imports stored the name of the file alone
            if dataset := named.get(offset) or (match["name"] if match else ""):
                self.by_run.setdefault(run, []).append((dataset, file))
        self._files = files

    def reason_against(self, run: int, source: str) -> str:
        """Why maps of this source cannot be of the run as it was imported; empty if they can."""
        files = self.by_run.get(run, [])
        if not files or any(are_one(dataset, source) for dataset, _ in files):
            return ""
        dataset, file = files[0]
        return (
            f"the source is {source}, and the archive holds run {run} of {dataset}, from {file}: two data sets of a run belong "
            "into two archives"
        )


class FiledDatasets:
    """The data set of each run of an archive, at the reader's snapshot."""

    def __init__(self, archive: Archive) -> None:
        self._source = archive.source
        imported = ImportedDatasets()
        imported.update(archive.root)
        self._filed = imported.by_run
        if not self._source:
            return
        for (feed, _), log in archive.index.logs.items():
            if feed != IMPORT_FEED:
                for run in np.unique(log.rows["run"]).tolist():
                    self._filed.setdefault(run, []).insert(0, (self._source, "messages"))

    def check(self, data: RunFile, is_filed: Callable[[], bool]) -> None:
        """Raise InputError if the archive holds the run of another data set.

        is_filed: tells whether the archive holds these maps already, under another name. Called only if the names differ.
        """
        filed = self._filed.get(data.run, [])
        if not filed or any(are_one(name, data.dataset) for name, _ in filed) or is_filed():
            return
        name, holder = filed[0]
        source = f" (its source is {self._source})" if self._source else ""
        raise InputError(
            f"{data.name} is of {data.dataset}, and the archive{source} holds run {data.run} of {name}, from {holder}: "
            "two data sets of a run belong into two archives, since one holds one map of a lumisection; "
            "if both are one data set, give the files one name"
        )
