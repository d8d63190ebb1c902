"""Reading the runs of files: each file by its reader, then conditions, source and golden lumisections as the user asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import most_counts
from dqmstream.storage.imports.find import find_files
from dqmstream.storage.imports.readers.registry import ReadRequest
from dqmstream.storage.imports.rules import ImportRules
from dqmstream.storage.imports.run_file import RunFile
from dqmstream.storage.imports.scaling import in_counts
from dqmstream.storage.labels.luminosity import LuminosityTable

Progress = Callable[[str, int, int], None]


def read_runs(paths: Sequence[Path], rules: ImportRules, progress: Progress) -> list[RunFile]:
    """The runs of files and folders in counts, with the conditions of tables, and without lumisections that are not golden.

    progress: called with "read", done, total, by readers that read maps ahead. Raises InputError for what cannot be used.
    """
    found = find_files(paths)
    if rules.run is not None and (found.count != 1 or not all(reader.needs_run for reader in found.maps)):
        raise InputError(
            f"--run names the run of one .npy file of maps: give it alone ({found.count} files are given). Group files are "
            "named by their folder, Run<number>, and Parquet holds the run"
        )
    request = ReadRequest(
        rules.run,
        rules.depths,
        rules.crop,
        rules.scratch,
        found.companions,
        lambda done, total: progress("read", done, total),
    )
    runs = [run for reader, files in found.maps.items() for run in reader.read(files, request)]
    if not runs:
        raise InputError(f"{found.files[0]} holds no run")
    if found.notes:
        runs[0] = replace(runs[0], notes=(*runs[0].notes, *found.notes))  # notes on the files as a whole are given once
    only_run = len({data.run for data in runs}) == 1
    for table in rules.luminosity:
        if not (table.has_runs or only_run):
            raise InputError(f"{table.name} names no run (run_number), and several runs are imported: add that column")
        runs = [with_luminosity(data, table, rules.max_events) for data in runs]
    if rules.source:
        runs = [replace(data, source=rules.source if data.source else "") for data in runs]
    if rules.golden:
        golden = rules.golden
        runs = [
            data.only(golden.is_good(data.run, data.lumisection), f"not good in {golden.name}") if data.size else data
            for data in runs
        ]
    return [in_counts(data, rules.interpolated) for data in runs]


def with_luminosity(data: RunFile, table: LuminosityTable, max_events: float) -> RunFile:
    """The run with the events and pileup of the table, except where it has none, or fewer events than a channel counts."""
    found = table.of(data.run, data.lumisection)
    given = ~np.logical_and.reduce([np.isnan(values) for values in found.values()])
    notes = [f"{table.name}: conditions of {int(given.sum())} of {data.size} lumisections"]
    if len(known := np.flatnonzero(~np.isnan(found["n_events"]))):
        largest = np.concatenate([block.reshape(len(block), -1).max(axis=1) for _, block in data.pieces()])
        said = found["n_events"][known]
        if len(wrong := known[(said > max_events) | (largest[known] > most_counts(said, max_events))]):
            notes.append(
                f"{table.name}: events of {len(wrong)} lumisections left out, from {data.lumisection[wrong[0]]} on: a channel "
                "counts more, or they are above --max-events"
            )
            found["n_events"][wrong] = np.nan
    events, pileup = (
        np.where(np.isnan(found[name]), before, found[name])
        for name, before in (("n_events", data.events), ("pileup", data.pileup))
    )
    return replace(data, events=events, pileup=pileup, notes=(*data.notes, *notes))


def check_sources(runs: Sequence[RunFile], rules: ImportRules) -> None:
    """Raise InputError where a run's source differs from the archive's or another run's, unless the user gave one for all."""
    if rules.source:
        return
    stored, holder = rules.stored_source, "the archive"
    for data in runs:
        if data.source and stored and data.source != stored:
            raise InputError(
                f"run {data.run} of {data.name} is of {data.source}, {holder} of {stored}: "
                "import it into an archive of its own, or give --source NAME to file both under one name"
            )
        if data.source and not stored:
            stored, holder = data.source, f"run {data.run} of {data.name}"
