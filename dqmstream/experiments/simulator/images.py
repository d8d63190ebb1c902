"""Electron/photon and quark/gluon images in the layouts of the published files, from a model whose ideal classifier is known.

The counts of each pixel are Poisson, x ~ Poisson(rate_k(pixel - s)), for an image of class k shifted by s, drawn evenly from a
few shifts. The exact likelihood of a class is a sum over shifts:

    log p(x | k) = logsumexp_s [ sum_pixel x log rate_ks - sum_pixel rate_ks ] + terms that are the same for all classes

No classifier can have an AUC above that of log p(x | 1) - log p(x | 0). Energies are counts times a constant. Widths and
multiplicities are invented: an accuracy on these images shows that a network learns, and nothing about electrons or jets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp

from dqmstream.errors import InputError
from dqmstream.learners.evaluation.roc import auc
from dqmstream.storage.locks import write_atomically

COUNT_ENERGY = 0.05
"""Energy of a count, in the files' units."""

MAX_CONTRAST = 4.0
"""Largest contrast of the classes; beyond it pixels hold thousands of counts."""

_CHUNK = 64
"""Images in a chunk of an HDF5 file."""

_ROWS = 256
"""Images that are drawn at a time."""


@dataclass(frozen=True, eq=False)
class ImageModel:
    """Poisson model of two classes.

    rate: expected counts of each class, shift and pixel, (2, shifts, C * H * W). shape: (C, H, W).
    """

    rate: np.ndarray
    shape: tuple[int, int, int]

    @classmethod
    def from_maps(cls, maps: np.ndarray, shifts: range, contrast: float) -> ImageModel:
        """Make the model from the expected counts of each class, (2, C, H, W), all above 0.

        shifts: along both image axes. contrast: factor on the difference of the maps' logarithms, 0 for no difference.
        """
        middle = np.log(maps).mean(axis=0)
        wanted = np.exp(middle + contrast * (np.log(maps) - middle))
        moved = [np.roll(wanted, (dy, dx), axis=(2, 3)).reshape(2, -1) for dy in shifts for dx in shifts]
        return cls(np.stack(moved, axis=1), maps.shape[1:])

    def draw(self, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw counts of images of these classes: int64, (n, C, H, W). label: (n,)."""
        shift = rng.integers(self.rate.shape[1], size=len(label))
        return rng.poisson(self.rate[label, shift]).reshape(len(label), *self.shape)

    def log_ratio(self, counts: np.ndarray) -> np.ndarray:
        """The exact log p(x | 1) - log p(x | 0): float64, (n,)."""
        flat = counts.reshape(len(counts), -1).astype(np.float64)
        one, other = (logsumexp(flat @ np.log(rate).T - rate.sum(axis=1), axis=1) for rate in self.rate)
        return np.asarray(other - one)


def electron_photon(contrast: float = 1.0) -> ImageModel:
    """Showers on 32 x 32 energies: round ones of photons (0), fainter ones spread along the second axis of electrons (1)."""
    maps = [[_blob(32, 1.4, 1.4, 26.0)], [_blob(32, 1.4, 2.0, 19.0)]]
    return ImageModel.from_maps(np.array(maps) + 0.002, range(-1, 2), contrast)


def quark_gluon(contrast: float = 1.0) -> ImageModel:
    """Jets on 3 x 125 x 125 pixels (tracks, two calorimeters): those of gluons (1) have more particles and are wider."""
    quark = [_blob(125, 5, 5, 40.0), _blob(125, 6, 6, 50.0), _blob(125, 7, 7, 30.0)]
    gluon = [_blob(125, 6, 6, 46.0), _blob(125, 7, 7, 56.0), _blob(125, 8, 8, 33.0)]
    return ImageModel.from_maps(np.array([quark, gluon]) + 1e-5, range(-4, 5, 4), contrast)


def _blob(side: int, high: float, wide: float, counts: float) -> np.ndarray:
    """A Gaussian with these widths in the middle of a square, with `counts` counts in total: (side, side)."""
    along = np.arange(side) - (side - 1) / 2
    map_ = np.exp(-0.5 * ((along[:, None] / high) ** 2 + (along / wide) ** 2))
    return np.asarray(counts * map_ / map_.sum())


def write_images(
    out: Path,
    layout: str,
    images: int,
    seed: int,
    contrast: float = 1.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write images in a layout, electron_photon or quark_gluon, into a folder, and return the paths, truth.json last.

    contrast: distance of the classes, 0 for none. progress: called with the number of files written and of all files.
    truth.json describes the model and holds "ideal_auc", the AUC of the exact likelihood ratio over all images written. Raises
    InputError for an unknown layout, fewer than 20 images, a contrast out of range, or a folder that holds other files or
    cannot be written.
    """
    if layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r} of images; choose one of {', '.join(LAYOUTS)}")
    if images < 20:
        raise InputError(f"{images} images are too few for training and test: ask for 20 or more")
    if not 0 <= contrast <= MAX_CONTRAST:
        raise InputError(f"contrast {contrast} is not in 0..{MAX_CONTRAST:g}")
    law, names, write = LAYOUTS[layout]
    rng = np.random.default_rng(seed)
    ideal = _ImageSource(law(contrast))
    paths = [out / name.format(n=n) for name, n in zip(names, _shared_out(images, len(names)), strict=True)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        foreign = sorted(entry.name for entry in out.iterdir() if entry not in (*paths, out / "truth.json"))
        if foreign:
            raise InputError(f"{out} holds other files ({foreign[0]}): choose an empty or new folder")
        for number, (path, n) in enumerate(zip(paths, _shared_out(images, len(paths)), strict=True)):
            write(path, n, number, ideal, rng)
            progress(number + 1, len(paths))
        words = (law.__doc__ or "").strip()
        truth = {"layout": layout, "seed": seed, "images": images, "contrast": contrast, "law": words, "ideal_auc": ideal.auc()}
        write_atomically(out / "truth.json", json.dumps(truth, indent=1).encode())
    except OSError as error:
        raise InputError(f"cannot write {error.filename or out}: {error.strerror or error}; choose another folder") from error
    return [*paths, out / "truth.json"]


def ideal_of(paths: list[Path]) -> float | None:
    """The ideal AUC in the truth.json beside the files; None if there is none, or more than one."""
    folders = {path if path.is_dir() else path.parent for path in paths}
    truths = [folder / "truth.json" for folder in folders if (folder / "truth.json").is_file()]
    found: dict[str, Any] = json.loads(truths[0].read_text()) if len(folders) == len(truths) == 1 else {}
    value = found.get("ideal_auc")
    return float(value) if value is not None else None


class _ImageSource:
    """Draws images, and keeps the likelihood ratio of each for the ideal AUC."""

    def __init__(self, law: ImageModel) -> None:
        self.law = law
        self._ratio: list[np.ndarray] = []
        self._label: list[np.ndarray] = []

    def draw(self, label: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield energies, float64, (n, C, H, W), and labels, (n,), a few at a time."""
        for start in range(0, len(label), _ROWS):
            few = label[start : start + _ROWS]
            counts = self.law.draw(few, rng)
            self._ratio.append(self.law.log_ratio(counts))
            self._label.append(few)
            yield counts * COUNT_ENERGY, few

    def auc(self) -> float:
        ratio, label = np.concatenate(self._ratio), np.concatenate(self._label)
        return auc(ratio[label == 1], ratio[label == 0])


def _shared_out(images: int, files: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(images), files)]


def _write_hdf5(path: Path, n: int, number: int, ideal: _ImageSource, rng: np.random.Generator) -> None:
    """Write one class: X, energies and times, (n, 32, 32, 2), and y, (n,). Times are noise where there is energy."""
    import h5py

    label = np.full(n, 1 - number)
    with h5py.File(path, "w") as file:
        x = file.create_dataset("X", (n, 32, 32, 2), np.float32, chunks=(min(n, _CHUNK), 32, 32, 2), compression="lzf")
        file["y"] = label.astype(np.float32)
        start = 0
        for energy, few in ideal.draw(label, rng):
            time = np.where(energy > 0, rng.normal(0.01, 0.001, energy.shape), 0.0)
            x[start : start + len(few)] = np.stack([energy[:, 0], time[:, 0]], axis=-1)
            start += len(few)


def _write_parquet(path: Path, n: int, number: int, ideal: _ImageSource, rng: np.random.Generator) -> None:
    """Write both classes mixed: X_jets (3 x 125 x 125 as nested lists), y, and pt and m0, which do not depend on the class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = rng.permutation(np.arange(n) % 2)
    channels, height, width = ideal.law.shape
    nested = pa.list_(pa.list_(pa.list_(pa.float64())))
    schema = pa.schema([("X_jets", nested), ("pt", pa.float64()), ("m0", pa.float64()), ("y", pa.float64())])
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        for energy, few in ideal.draw(label, rng):
            values = pa.array(energy.ravel())
            for size in (width, height, channels):
                values = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, size, dtype=np.int32), values)
            pt, mass = rng.uniform(80, 180, len(few)), rng.uniform(5, 40, len(few))
            writer.write_table(pa.table([values, pt, mass, few.astype(np.float64)], schema=schema), row_group_size=32)


_Writer = Callable[[Path, int, int, _ImageSource, np.random.Generator], None]

LAYOUTS: dict[str, tuple[Callable[[float], ImageModel], tuple[str, ...], _Writer]] = {
    "electron_photon": (
        electron_photon,
        ("SingleElectronPt50_IMGCROPS_n{n}_RHv1.hdf5", "SinglePhotonPt50_IMGCROPS_n{n}_RHv1.hdf5"),
        _write_hdf5,
    ),
    "quark_gluon": (quark_gluon, ("QCDToGGQQ_IMGjet_RH1all_jet0_run0_n{n}.test.snappy.parquet",), _write_parquet),
}
"""Model, file names and writer of each layout."""
