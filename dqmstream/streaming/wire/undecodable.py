"""The reason why a message cannot be decoded, in one line."""

from __future__ import annotations

LONGEST_REASON = 500
"""Characters."""


class Undecodable(Exception):
    """A message that is damaged or of no known format. Its text is the reason that goes with it to the dead letters."""

    def __init__(self, reason: str) -> None:
        super().__init__(shortened(" ".join(reason.split())))


def shortened(reason: str) -> str:
    """The reason, cut where it is long: a reason quotes what was sent."""
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}..."


def quote(data: bytes) -> str:
    """The first 40 bytes, for a reason."""
    return repr(data) if len(data) <= 40 else f"{data[:40]!r}... ({len(data)} bytes)"
