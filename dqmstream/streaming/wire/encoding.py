"""Records as messages: da00 for a lumisection, pl72 for a run start, 6s4t for a run stop."""

from __future__ import annotations

import numpy as np
from streaming_data_types.dataarray_da00 import Variable, serialise_da00
from streaming_data_types.run_start_pl72 import serialise_pl72
from streaming_data_types.run_stop_6s4t import serialise_6s4t

from dqmstream.lumisection import Lumisection, Record, RunStart, RunStop
from dqmstream.streaming.wire.da00 import MAP_AXES
from dqmstream.streaming.wire.envelope import CRC_HEADER, checksum
from dqmstream.streaming.wire.fields import NS_PER_MS


def encode(record: Record) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers of a record."""
    if isinstance(record, RunStart):
        value = serialise_pl72(
            job_id="", filename="", run_name=str(record.run), start_time=record.time_ns // NS_PER_MS, stop_time=0
        )
    elif isinstance(record, RunStop):
        value = serialise_6s4t(job_id="", run_name=str(record.run), stop_time=record.time_ns // NS_PER_MS)
    else:
        value = _encode_lumisection(record)
    return str(record.run).encode("ascii"), value, [(CRC_HEADER, checksum(value))]


def _encode_lumisection(record: Lumisection) -> bytes:
    variables = [
        Variable(
            name="occupancy",
            data=np.ascontiguousarray(record.occupancy),
            axes=MAP_AXES[record.occupancy.ndim - 2],
            unit="count",
        ),
        # The library refuses NumPy scalars and gives Python ints a wrong shape: numbers go as arrays without axes.
        Variable(name="run", data=np.array(record.run, np.int64)),
        Variable(name="lumisection", data=np.array(record.lumisection, np.int64)),
    ]
    for name, known in (("n_events", record.n_events), ("pileup", record.pileup)):
        if not np.isnan(known):
            variables.append(Variable(name=name, data=np.array(known, np.float64)))
    return serialise_da00(source_name=record.source, timestamp_ns=record.time_ns, data=variables)
