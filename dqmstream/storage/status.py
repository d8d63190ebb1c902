"""What an archive holds: runs, feeds with their offsets, and labels, as one JSON object."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from dqmstream.storage.archive import Archive
from dqmstream.storage.columns import read_column, subgroup
from dqmstream.storage.labels.versions import label_versions
from dqmstream.storage.layout import ControlKind, feed_path
from dqmstream.storage.row_index import RunSummary
from dqmstream.storage.scale import Scale, scale_of_rows


def archive_status(archive: Archive) -> dict[str, Any]:
    """Identity, runs, lumisections, gaps, labels and offsets of an archive at its snapshot, as `status --json` prints them."""
    scales = run_scales(archive)
    runs = [_run_status(summary, scales[summary.run]) for summary in archive.runs()]
    return {
        "archive": str(archive.path),
        "archive_id": archive.archive_id,
        "snapshot": archive.snapshot,
        "committed": f"{archive.committed:%Y-%m-%dT%H:%M:%SZ}",
        "clock_behind_s": max(round((archive.committed - datetime.now(UTC)).total_seconds(), 3), 0.0),
        "dtype": archive.dtype.name,
        "depths": archive.geometry.depths,
        "source": archive.source,
        "labels": [asdict(version) for version in label_versions(archive.root)],
        "lumisections": sum(run["lumisections"] for run in runs),
        "runs": runs,
        "feeds": [
            _feed_status(archive, feed, partition, first, following)
            for feed, partitions in archive.offsets().items()
            for partition, (first, following) in sorted(partitions.items())
        ],
    }


def run_scales(archive: Archive) -> dict[int, Scale]:
    """The scale of each run: of the newest revisions of its lumisections. Rows of an older dqmstream pass for counts."""
    columns: dict[str, list[np.ndarray]] = {"run": [], "lumisection": [], "committed": [], "quality": []}
    for (feed, partition), log in archive.index.logs.items():
        quality = read_column(subgroup(archive.root, feed_path(feed, partition)), "quality", 0, log.rows.size)
        for name, values in columns.items():
            values.append(quality if name == "quality" else log.rows[name])
    if not sum(map(len, columns["run"])):
        return {}
    run, lumisection, committed, quality = (np.concatenate(values) for values in columns.values())
    order = np.lexsort((committed, lumisection, run))
    run, lumisection, quality = run[order], lumisection[order], quality[order]
    newest = np.append((np.diff(run) != 0) | (np.diff(lumisection) != 0), True)
    runs, starts = np.unique(run[newest], return_index=True)
    return {one: scale_of_rows(part) for one, part in zip(runs.tolist(), np.split(quality[newest], starts[1:]), strict=True)}


def _run_status(summary: RunSummary, scale: Scale) -> dict[str, Any]:
    return {
        "run": summary.run,
        "lumisections": summary.lumisections,
        "first": summary.first_lumisection,
        "last": summary.last_lumisection,
        "missing": summary.missing,
        "revisions": summary.revisions,
        "duplicates": summary.duplicates,
        "complete": summary.complete,
        "scale": scale.value,
    }


def _feed_status(archive: Archive, feed: str, partition: int, first: int, following: int) -> dict[str, Any]:
    """Offsets of a partition, and for how many of them there is a row or each kind of control entry."""
    control = archive.control(feed, partition)
    kinds = control["kind"].values
    spans = control["until"].values - control["offset"].values
    return {
        "feed": feed,
        "partition": partition,
        "first_offset": first,
        "next_offset": following,
        "rows": following - first - int(spans.sum()),
        **{kind.name.lower(): int(spans[kinds == kind].sum()) for kind in ControlKind},
    }
