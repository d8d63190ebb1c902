"""Panel: which archive, at which snapshot."""

from __future__ import annotations

import time
from typing import Any

from dqmstream import __version__
from dqmstream.experiments.report.panel import Link, Panel, ReportInputs
from dqmstream.storage.archive import Archive


def archive_panel(report: ReportInputs) -> Panel:
    return Panel("archive.html.j2", {"about": report.about}, [Link("archive", "The archive")], {"about": report.about})


def about(archive: Archive) -> dict[str, Any]:
    """The archive and this report of it, ready for JSON."""
    summaries = archive.runs()
    return {
        "archive": archive.path.resolve().name,  # the rest of the path is this machine's business
        "archive_id": archive.archive_id,
        "source": archive.source,
        "runs": len(summaries),
        "first_run": min((s.run for s in summaries), default=None),
        "last_run": max((s.run for s in summaries), default=None),
        "lumisections": sum(s.lumisections for s in summaries),
        "snapshot": archive.snapshot,
        "dtype": archive.dtype.name,
        "depths": archive.geometry.depths,
        "made": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "dqmstream": __version__,
    }
