"""The formats pl72 and 6s4t (ess-streaming-data-types): a run starts, a run stops."""

from __future__ import annotations

from streaming_data_types.run_start_pl72 import deserialise_pl72
from streaming_data_types.run_stop_6s4t import deserialise_6s4t

from dqmstream.lumisection import RunStart, RunStop
from dqmstream.streaming.wire.fields import NS_PER_MS, read_whole


def decode_pl72(value: bytes, headers: dict[str, bytes]) -> RunStart:
    start = deserialise_pl72(value)
    return RunStart(read_whole("run_name", (start.run_name or "").encode()), start.start_time * NS_PER_MS)


def decode_6s4t(value: bytes, headers: dict[str, bytes]) -> RunStop:
    stop = deserialise_6s4t(value)
    return RunStop(read_whole("run_name", (stop.run_name or "").encode()), stop.stop_time * NS_PER_MS)
