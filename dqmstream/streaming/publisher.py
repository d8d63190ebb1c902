"""Archived runs as messages: a run start, the run's lumisections in order, a run stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Protocol

import numpy as np

from dqmstream.lumisection import Lumisection, Record, RunStart, RunStop
from dqmstream.storage.archive import Archive
from dqmstream.storage.layout import NAT
from dqmstream.streaming import wire
from dqmstream.streaming.message import Message

UNNAMED_SOURCE = "/Local/Archive#Hcal/DigiTask/Occupancy/depth/depth1"
"""Source of the messages of an archive that has none, since its runs were imported from files."""


class Sender(Protocol):
    """Where messages are sent. `flush` returns when all were acknowledged."""

    def send(self, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> None: ...

    def flush(self) -> None: ...


def records(archive: Archive, runs: Sequence[int]) -> Iterator[Record]:
    """Records of the runs in this order; one run at a time is held in memory."""
    source = archive.source or UNNAMED_SOURCE
    for run in runs:
        view = archive.run(run)
        times = np.where(view["time"].values.view("int64") == NAT, 0, view["time"].values.view("int64"))
        occupancy = view["occupancy"].values
        yield RunStart(run, int(times[0]))
        for k, lumisection in enumerate(view["lumisection"].values):
            yield Lumisection(
                run=run,
                lumisection=int(lumisection),
                occupancy=occupancy[k],
                time_ns=int(times[k]),
                n_events=float(view["n_events"].values[k]),
                pileup=float(view["pileup"].values[k]),
                source=source,
            )
        yield RunStop(run, int(times[-1]))


def messages(archive: Archive, runs: Sequence[int]) -> Iterator[Message]:
    """The same records as messages of one partition, for an in-process feed."""
    offsets = count()
    for record in records(archive, runs):
        key, value, headers = wire.encode(record)
        yield Message(0, next(offsets), key, value, headers)


def publish(
    archive: Archive,
    sender: Sender,
    runs: Sequence[int],
    *,
    interval_s: float = 0.0,
    progress: Callable[[int], None] = lambda lumisections: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Send the runs, a lumisection every interval_s seconds (0: without a pause). Returns the number of lumisections.

    The interval is kept on average: after a slow send the next ones follow sooner. Each run is acknowledged before the next
    one begins, and all are on return. progress: called with the number of lumisections sent.
    """
    sent = 0
    due = clock()
    for record in records(archive, runs):
        if isinstance(record, Lumisection):
            if interval_s:
                sender.flush()
                if (wait := due - clock()) > 0:
                    sleep(wait)
                due += interval_s
            sent += 1
            progress(sent)
        sender.send(*wire.encode(record))
        if isinstance(record, RunStop):
            sender.flush()
    return sent
