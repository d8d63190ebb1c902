"""What one process has filed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class IngestCounts:
    """Messages read, and what became of them in the archive. dead: messages that became dead letters."""

    messages: int = 0
    rows: int = 0
    duplicates: int = 0
    revisions: int = 0
    dead: int = 0
    gaps: int = 0
    commits: int = 0
    stops: int = 0
