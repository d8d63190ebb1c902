"""What an archive holds: runs, feeds with their offsets, and labels, as one JSON object."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from dqmstream.storage.archive import Archive
from dqmstream.storage.labels.versions import label_versions
from dqmstream.storage.layout import ControlKind
from dqmstream.storage.row_index import RunSummary


def archive_status(archive: Archive) -> dict[str, Any]:
    """Identity, runs, lumisections, gaps, labels and offsets of an archive at its snapshot, as `status --json` prints them."""
    runs = [_run_status(summary) for summary in archive.runs()]
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


def _run_status(summary: RunSummary) -> dict[str, Any]:
    return {
        "run": summary.run,
        "lumisections": summary.lumisections,
        "first": summary.first_lumisection,
        "last": summary.last_lumisection,
        "missing": summary.missing,
        "revisions": summary.revisions,
        "duplicates": summary.duplicates,
        "complete": summary.complete,
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
