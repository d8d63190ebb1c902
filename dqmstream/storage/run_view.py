"""A run as an xarray Dataset: the newest revision of each lumisection, from all logs, with labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
import zarr

from dqmstream.lumisection import IETA, IPHI
from dqmstream.storage import layout
from dqmstream.storage.columns import read_rows, subgroup
from dqmstream.storage.labels.versions import UNKNOWN, Labels
from dqmstream.storage.layout import NAT, Quality
from dqmstream.storage.lazy_maps import lazy_maps
from dqmstream.storage.row_index import LogKey


def run_view(
    path: Path, root: zarr.Group, logs: list[LogKey], newest: np.ndarray, labels: Labels, run: int, *, depths: int, maps: bool
) -> xr.Dataset:
    """The Dataset that `Archive.run` describes, without its attributes.

    path: of the archive. logs, newest: as `RowIndex.newest` gives them, with at least one lumisection. maps: with `occupancy`.
    """
    lumisection = newest[:, 0]
    columns = _read_columns(root, logs, newest)
    times = {name: columns.pop(name).view("datetime64[ns]") for name in layout.TIMES}  # NAT is NumPy's own NaT
    said = _labels_of(labels, run, lumisection, columns["quality"])
    return xr.Dataset(
        {
            **({"occupancy": lazy_maps(path, root, logs, newest)} if maps else {}),
            **{name: ("lumisection", values) for name, values in (times | columns).items()},
            "revision": ("lumisection", newest[:, 1]),
            **{name: ("lumisection", values) for name, values in said.items()},
        },
        coords={"lumisection": lumisection, "depth": np.arange(1, depths + 1), "ieta": IETA, "iphi": IPHI},
    )


def _read_columns(root: zarr.Group, logs: list[LogKey], newest: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of these rows, but for the maps, whichever logs they are in, in the order of `newest`."""
    names = [*layout.TIMES, "n_events", "pileup", "content", "quality"]
    parts = []
    for place in np.unique(newest[:, 2]):
        here = np.flatnonzero(newest[:, 2] == place)
        part = read_rows(subgroup(root, layout.feed_path(*logs[place])), names, newest[here, 3])
        part.setdefault("produced", np.full(len(here), NAT))  # layout 1 has none
        parts.append((here, part))
    return parts[0][1] if len(parts) == 1 else _merge(len(newest), parts)


def _merge(size: int, parts: list[tuple[np.ndarray, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Columns of `size` rows from parts, each with the places of its rows."""
    merged = {name: np.empty((size, *values.shape[1:]), values.dtype) for name, values in parts[0][1].items()}
    for here, part in parts:
        for name, values in part.items():
            merged[name][here] = values
    return merged


def _labels_of(labels: Labels, run: int, lumisection: np.ndarray, quality: np.ndarray) -> dict[str, np.ndarray]:
    """Labels of these lumisections, of the kinds that were imported. Interpolated rows have none."""
    found: dict[str, np.ndarray] = {}
    if labels.golden is not None:
        found["golden"] = labels.golden_of(run, lumisection)
    if labels.luminosity is not None:
        said = labels.luminosity_of(run, lumisection)
        found |= {name: said[name] for name in ("delivered_lumi", "recorded_lumi")}
    interpolated = (quality & Quality.INTERPOLATED) != 0
    for name, values in found.items():
        values[interpolated] = UNKNOWN if name == "golden" else np.nan
    return found


assert np.datetime64("NaT", "ns").view("int64") == NAT
