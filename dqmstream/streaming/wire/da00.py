"""The format da00 (ess-streaming-data-types): a lumisection as named arrays."""

from __future__ import annotations

from math import nan

import numpy as np

from dqmstream.lumisection import Lumisection
from dqmstream.streaming.wire.da00_buffer import BufferReader, Variable
from dqmstream.streaming.wire.fields import canonical, checked_source
from dqmstream.streaming.wire.undecodable import Undecodable

MAP_AXES = (["ieta", "iphi"], ["depth", "ieta", "iphi"])

READER = BufferReader()
"""One for all messages: it remembers the layouts that it has read."""


def decode_da00(value: bytes, headers: dict[str, bytes]) -> Lumisection:
    """Variables occupancy (counts), run and lumisection (whole numbers), n_events and pileup (float64) where known."""
    source, time_ns, variables = READER.read(value)
    if missing := {"occupancy", "run", "lumisection"} - variables.keys():
        raise Undecodable(f"no variable {', '.join(sorted(missing))}")
    occupancy = variables["occupancy"]
    if occupancy.axes not in MAP_AXES:
        raise Undecodable(f"occupancy has the axes {occupancy.axes}, not (ieta, iphi) or (depth, ieta, iphi)")
    if occupancy.unit != "count":
        raise Undecodable(f"occupancy has the unit {occupancy.unit!r}, not 'count'")
    return Lumisection(
        run=_number(variables["run"]),
        lumisection=_number(variables["lumisection"]),
        occupancy=occupancy.data,
        time_ns=time_ns,
        n_events=_scalar(variables.get("n_events")),
        pileup=_scalar(variables.get("pileup")),
        source=checked_source(source),
    )


def _number(variable: Variable) -> int:
    if variable.data.size != 1 or variable.axes or variable.data.dtype.kind not in "iu":
        raise Undecodable(f"{variable.name} is not one whole number")
    return int(variable.data.item())


def _scalar(variable: Variable | None) -> float:
    if variable is None:
        return nan
    if variable.data.size != 1 or variable.axes or variable.data.dtype != np.float64:
        raise Undecodable(f"{variable.name} is not one float64")
    return canonical(float(variable.data.item()))
