"""Which layout each file is in, by its name and the folder that it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dqmstream.errors import InputError
from dqmstream.lumisection import SIDECAR_FILE

GROUP_FILE = "output__depth.npy"
TABLE_FILE, META_FILE = "run_ls_lumi_df.npy", "meta_data.json"
"""What may lie beside it."""
NOT_DATA = ("truth.json",)
"""What `simulate` leaves beside the files, so that `simulated/*` can be given as it is."""


@dataclass
class Files:
    """Files of lumisections, each list in the order given. sidecars: by (run, "events" | "pileup")."""

    arrays: list[Path] = field(default_factory=list)
    groups: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    sidecars: dict[tuple[int, str], Path] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.arrays) + len(self.groups) + len(self.parquet)


def find_files(paths: Sequence[Path]) -> Files:
    """The files among those given, and in folders of them. Raises InputError for what is in no layout that is known."""
    found = Files()
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        for file in _inside(path) if path.is_dir() else [path]:
            if match := SIDECAR_FILE.match(file.name):
                found.sidecars[(int(match["run"]), match["what"])] = file
            elif file.name == GROUP_FILE:
                found.groups.append(file)
            elif file.name in (*NOT_DATA, TABLE_FILE, META_FILE):
                continue  # read beside the maps that they belong to, or not at all
            elif file.suffix == ".npy":
                found.arrays.append(file)
            elif file.suffix == ".parquet":
                found.parquet.append(file)
            else:
                raise InputError(_unknown(file))
    if not found.count:
        raise InputError("no file with occupancy maps among those given, only what goes beside them")
    return found


def _inside(folder: Path) -> list[Path]:
    """What a folder holds: files of it, and the maps in folders of runs. Raises InputError where that is nothing."""
    inside = [path for path in sorted(folder.iterdir()) if path.suffix in (".npy", ".parquet")]
    inside += sorted(folder.glob(f"Run*/{GROUP_FILE}"))
    if not inside:
        raise InputError(f"{folder} holds no .npy file, no .parquet file and no Run<number>/{GROUP_FILE}")
    return inside


def _unknown(path: Path) -> str:
    if path.suffix in (".json", ".csv"):
        return f"{path} holds no maps: a golden JSON is given by --golden, a table of luminosity by --lumi"
    if path.suffix == ".npz":
        return f"{path} is an archive of arrays: save each as .npy"
    return (
        f"{path} is no .npy file and no .parquet file: `import` takes .npy of shape (lumisections, 64, 72), DIALS Parquet, "
        f"Run<number>/{GROUP_FILE}, and images as .hdf5 or Parquet"
    )
