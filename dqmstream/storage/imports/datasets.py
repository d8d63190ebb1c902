"""Which data set each run of an archive is of, so that the maps of another one never become revisions of it.

An archive holds one map of a lumisection. Maps of ZeroBias and of JetHT are both maps of the same run and lumisection, and
would replace each other. Imports therefore keep the data set that a file names as the reason of the run's start, and what
comes of such a run, from files or as messages, must be of that data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import zarr

from dqmstream.errors import InputError
from dqmstream.lumisection import RUN_FILE, check_source
from dqmstream.storage.archive import Archive
from dqmstream.storage.columns import read_column
from dqmstream.storage.imports.run_file import RunFile
from dqmstream.storage.layout import IMPORT_FEED, ControlKind, feed_path


def are_one(name: str, other: str) -> bool:
    """Whether two names can be those of one data set; an empty one is unknown, and can be any.

    A file's name may be the short form (ZeroBias) of a full one (/ZeroBias/Run2024C-PromptReco-v1/DQMIO#...).
    """
    if not name or not other or name == other:
        return True
    if name.startswith("/") == other.startswith("/"):
        return False
    short, full = sorted((name, other), key=lambda one: one.startswith("/"))
    return short == full.split("/")[1]


def check_one_import(runs: Sequence[RunFile]) -> None:
    """Raise InputError where two of the files are of one run and of two data sets, or one names what is no data set."""
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
    """The files that an archive's runs were imported from, and their data sets.

    by_run: (data set, file) of each file that names one.
    """

    def __init__(self) -> None:
        self.by_run: dict[int, list[tuple[str, str]]] = {}
        self._files = 0

    def update(self, root: zarr.Group) -> None:
        """Take over what was imported since. root: the archive's root group at a snapshot no older than the last one."""
        table = root["imports"]
        files = table["run"].shape[0]
        if files == self._files:
            return
        control = root[f"{feed_path(IMPORT_FEED, 0)}/control"]
        begun = read_column(control, "kind") == ControlKind.START
        named = dict(zip(*(read_column(control, name)[begun].tolist() for name in ("offset", "reason")), strict=True))
        columns = (read_column(table, name, self._files, files).tolist() for name in ("name", "run", "offset"))
        for file, run, offset in zip(*columns, strict=True):
            match = RUN_FILE.match(file)  # the name of the file is all that older imports kept
            if dataset := named.get(offset) or (match["name"] if match else ""):
                self.by_run.setdefault(run, []).append((dataset, file))
        self._files = files

    def reason_against(self, run: int, source: str) -> str:
        """Why what is of this source is none of the run as it was imported; empty where it may be."""
        files = self.by_run.get(run, [])
        if not files or any(are_one(dataset, source) for dataset, _ in files):
            return ""
        dataset, file = files[0]
        return (
            f"the source is {source}, and the archive holds run {run} of {dataset}, from {file}: two data sets of a run belong "
            "into two archives"
        )


class FiledDatasets:
    """The data set of each run that an archive holds, as of the snapshot that it is pinned to."""

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
        """Raise InputError where the archive holds the run of another data set.

        is_filed: asked then whether the archive holds these maps all the same, under another name.
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
