"""Which layout each file is in, by its name and the folder that it lies in.

What a folder holds besides data is left out and told: hidden files (`._Run355400.npy`, which macOS leaves beside a copy),
Parquet without rows, .npy whose names tell no run beside others that do. A partitioned data set (`year=2024/`) is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dqmstream.errors import InputError
from dqmstream.lumisection import RUN_FILE, SIDECAR_FILE

GROUP_FILE = "output__depth.npy"
TABLE_FILE, META_FILE = "run_ls_lumi_df.npy", "meta_data.json"
"""What may lie beside it."""
NOT_DATA = ("truth.json",)
"""What `simulate` leaves beside the files, so that `simulated/*` can be given as it is."""
_SUFFIXES = (".npy", ".parquet")
_KEYS = ("run_number", "ls_number", "me", "dataset")
"""Columns of DIALS that each file must hold itself."""


@dataclass
class Files:
    """Files of lumisections, each list in the order given.

    sidecars: by (run, "events" | "pileup"). notes: what was left out, and why.
    """

    arrays: list[Path] = field(default_factory=list)
    groups: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    sidecars: dict[tuple[int, str], Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.arrays) + len(self.groups) + len(self.parquet)


def find_files(paths: Sequence[Path]) -> Files:
    """The files among those given, and in folders of them. Raises InputError for what is in no layout that is known."""
    found = Files()
    nameless: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        for file in _inside(path) if path.is_dir() else [path]:
            suffix = file.suffix.lower()
            if match := SIDECAR_FILE.match(file.name):
                found.sidecars[(int(match["run"]), match["what"])] = file
            elif is_hidden(file):
                found.notes.append(f"{file} is a hidden file: left out")
            elif file.name == GROUP_FILE:
                found.groups.append(file)
            elif file.name in (*NOT_DATA, TABLE_FILE, META_FILE):
                continue  # read beside the maps that they belong to, or not at all
            elif suffix == ".npy" and path.is_dir() and not RUN_FILE.match(file.name):
                nameless.append(file)
            elif suffix == ".npy":
                found.arrays.append(file)
            elif suffix == ".parquet" and has_rows(file):
                found.parquet.append(file)
            elif suffix == ".parquet":
                found.notes.append(f"{file} holds no row: left out")
            else:
                raise InputError(_unknown(file))
    if nameless and not found.count:
        found.arrays = nameless  # --run may name the run of one
    else:
        found.notes += [f"{file} left out: its name tells no run" for file in nameless]
    if not found.count:
        why = "; ".join(found.notes[:3]) or "only what goes beside them"
        raise InputError(f"no file with occupancy maps among those given: {why}")
    return found


def is_hidden(path: Path) -> bool:
    """Whether the file is none of the user's data, by its name."""
    return path.name.startswith(".")


def _inside(folder: Path) -> list[Path]:
    """What a folder holds: files of it, and the maps in folders of runs. Raises InputError where that is nothing."""
    inside = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES and path.is_file()]
    inside += sorted(folder.glob(f"Run*/{GROUP_FILE}"))
    inside += _partitioned(folder)
    if not inside:
        raise InputError(f"{folder} holds no .npy file, no .parquet file and no Run<number>/{GROUP_FILE}")
    return inside


def _partitioned(folder: Path) -> list[Path]:
    """Parquet in folders named `key=value`. Raises InputError where the key is a column that its files then lack."""
    inside: list[Path] = []
    for part in sorted(path for path in folder.iterdir() if path.is_dir() and "=" in path.name):
        files = [path for path in sorted(part.iterdir()) if path.suffix.lower() == ".parquet"]
        key = part.name.partition("=")[0]
        for file in files:
            if key in _KEYS and not is_hidden(file) and key not in _columns(file):
                raise InputError(
                    f"{file} has no column {key}, which is in the name of its folder alone: write the files without "
                    f"partitions by {key}"
                )
        inside += files + _partitioned(part)
    return inside


def has_rows(path: Path) -> bool:
    """Whether a Parquet file holds any. Raises InputError for what is none."""
    from dqmstream.storage.imports.nested_lists import open_parquet

    return bool(open_parquet(path).metadata.num_rows)


def _columns(path: Path) -> list[str]:
    from dqmstream.storage.imports.nested_lists import open_parquet

    return list(open_parquet(path).schema_arrow.names)


def _unknown(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".json", ".jsonl", ".csv")):
        return f"{path} holds no maps: a golden JSON is given by --golden, a table of luminosity by --lumi"
    if name.endswith(".npz"):
        return f"{path} is an archive of arrays: save each as .npy"
    if name.endswith((".npy", ".parquet")):
        return f"{path} is compressed: unpack it first"
    return (
        f"{path} is no .npy file and no .parquet file: `import` takes .npy of shape (lumisections, 64, 72), DIALS Parquet, "
        f"Run<number>/{GROUP_FILE}, and images as .hdf5 or Parquet"
    )
