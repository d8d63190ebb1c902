"""Small files in every layout that users have."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def images(n: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Sparse images: float32, (n, *shape)."""
    rng = np.random.default_rng(seed)
    return (rng.exponential(size=(n, *shape)) * (rng.random((n, *shape)) < 0.1)).astype(np.float32)


def write_hdf5(path: Path, n: int = 20, *, y: object = 1.0, x: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """An electron/photon file, (n, 32, 32, 2) and y; returns X."""
    x = images(n, (32, 32, 2), seed) if x is None else x
    with h5py.File(path, "w") as file:
        file.create_dataset("X", data=x, chunks=(min(8, len(x)), *x.shape[1:]) if len(x) else None, compression="gzip")
        file["y"] = np.broadcast_to(np.asarray(y, np.float32), (len(x),))
    return x


def nested(x: np.ndarray) -> pa.Array:
    """An array (rows, ...) as lists in lists."""
    values = pa.array(x.reshape(-1))
    for axis in range(x.ndim - 1, 0, -1):
        size = x.shape[axis]
        values = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, size, dtype=np.int32), values)
    return values


def write_jets(path: Path, n: int = 6, *, x: object = None, y: object = None, row_group: int = 1, seed: int = 0) -> np.ndarray:
    """A quark/gluon file, lists of 3 x 125 x 125 in row groups of so many rows; returns X_jets as float64."""
    x = images(n, (3, 125, 125), seed).astype(np.float64) if x is None else x
    if isinstance(x, np.ndarray):
        lists = nested(x)
    else:
        lists = pa.array([row.tolist() if isinstance(row, np.ndarray) else row for row in x])  # type: ignore[attr-defined]
    columns = {
        "X_jets": lists,
        "pt": np.linspace(90, 150, len(lists)),
        "m0": np.linspace(5, 30, len(lists)),
        "y": np.arange(len(lists)) % 2.0 if y is None else y,
    }
    pq.write_table(pa.table(columns), path, row_group_size=row_group, compression="snappy")
    return np.asarray(x) if isinstance(x, np.ndarray) else np.empty(0)


ELEMENT = "Hcal/DigiTask/Occupancy/depth/depth{}"
DATASET = "/ZeroBias/Run2024C-PromptReco-v1/DQMIO"


def booked(maps: np.ndarray) -> np.ndarray:
    """Maps (..., 64, 72) in the 84 bins of cmssw: HE up to |ieta| 29 at x + 42 or x + 41, HF beyond at x + 41 or x + 42."""
    wide = np.zeros((*maps.shape[:-2], 84, 72), maps.dtype)
    for row, ieta in enumerate([*range(-32, 0), *range(1, 33)]):
        is_hf = abs(ieta) > 29
        wide[..., ieta + (42 - is_hf if ieta < 0 else 41 + is_hf), :] = maps[..., row, :]
    return wide


def dials_rows(run: int, maps: np.ndarray, *, dataset: str = DATASET, first: int = 1) -> list[dict[str, object]]:
    """Rows of a run's maps, (n, depths, 64, 72), as DIALS has them: data is (72 iphi, 84 ieta)."""
    wide = booked(maps)
    return [
        {
            "dataset": dataset,
            "me": ELEMENT.format(depth + 1),
            "run_number": run,
            "ls_number": first + k,
            "x_bin": 84,
            "y_bin": 72,
            "entries": float(maps[k, depth].sum()),
            "data": one.T,
        }
        for k, depths in enumerate(wide)
        for depth, one in enumerate(depths)
    ]


def write_dials(path: Path, rows: list[dict[str, object]], row_group: int = 100) -> Path:
    """Those rows as Parquet; `data` may be anything that nests."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, object] = {name: [row[name] for row in rows] for name in rows[0] if name != "data"}
    data = [row["data"] for row in rows]
    if all(isinstance(one, np.ndarray) for one in data):
        columns["data"] = nested(np.stack(data))  # type: ignore[arg-type]
    else:
        columns["data"] = [one.tolist() if isinstance(one, np.ndarray) else one for one in data]
    pq.write_table(pa.table(columns), path, row_group_size=row_group)
    return path


def write_group(folder: Path, run: int, maps: np.ndarray, table: np.ndarray | None = None, meta: str | None = None) -> Path:
    """A group's folder of a run, from maps (n, depths, 64, 72)."""
    folder = folder / f"Run{run}"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "output__depth.npy", np.moveaxis(maps, 1, 3)[..., None])
    if table is not None:
        np.save(folder / "run_ls_lumi_df.npy", table, allow_pickle=True)
    if meta is not None:
        (folder / "meta_data.json").write_text(meta)
    return folder / "output__depth.npy"


def depth_maps(run: int, n: int, depths: int) -> np.ndarray:
    """Sparse counts that depend on (run, n, depths): float32, (n, depths, 64, 72)."""
    rng = np.random.default_rng((run, n, depths))
    return (rng.poisson(300, (n, depths, 64, 72)) * (rng.random((64, 72)) < 0.2)).astype(np.float32)
