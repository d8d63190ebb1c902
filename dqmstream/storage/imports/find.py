"""Which reader takes which file, among the files and folders that the user gives.

Readers know their files by name (`readers.registry`). Files that cannot be data are left out and noted: hidden files
(`._Run355400.npy`, which macOS leaves beside a copy), Parquet without rows, and .npy files in a folder whose names do not tell
the run, if there are others that do. A partitioned data set (`year=2024/`) is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dqmstream.errors import InputError
from dqmstream.storage.imports.readers.groups import MAP_FILE
from dqmstream.storage.imports.readers.registry import Reader, reader_of, readers


@dataclass
class FoundFiles:
    """Files with occupancy maps, by their reader, in the order given.

    companions: files to be read beside them. notes: files that were left out, and why.
    """

    maps: dict[Reader, list[Path]] = field(default_factory=dict)
    companions: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[Path]:
        """All files with maps."""
        return [path for paths in self.maps.values() for path in paths]

    @property
    def count(self) -> int:
        return len(self.files)


def find_files(paths: Sequence[Path]) -> FoundFiles:
    """Files of lumisections among those given, and in folders among them. Raises InputError for a file in no known layout."""
    found = _find(paths, all_named=False)
    if not found.count:
        found = _find(paths, all_named=True)  # the user may name the run of a single file by --run
    if not found.count:
        why = "; ".join(found.notes[:3]) or "only files that belong beside them"
        raise InputError(f"no file with occupancy maps among those given: {why}")
    found.maps = {reader: found.maps[reader] for reader in readers() if reader in found.maps}
    return found


def _find(paths: Sequence[Path], *, all_named: bool) -> FoundFiles:
    """all_named: treat files in folders as if the user had named each."""
    found = FoundFiles()
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        for file in _inside(path) if path.is_dir() else [path]:
            reader = reader_of(file)
            if is_hidden(file):
                found.notes.append(f"{file} is a hidden file: left out")
            elif any(known.is_companion(file) for known in readers()):
                found.companions.append(file)
            elif reader is None:
                raise InputError(_unknown(file))
            elif why := reader.why_left_out(file, all_named or not path.is_dir()):
                found.notes.append(f"{file} {why}")
            else:
                found.maps.setdefault(reader, []).append(file)
    return found


def is_hidden(path: Path) -> bool:
    """Whether the file's name begins with a dot, so that it is none of the user's data."""
    return path.name.startswith(".")


def _inside(folder: Path) -> list[Path]:
    """Files of a folder that a reader takes, then those that readers find in its subfolders.

    Raises InputError for a folder without any.
    """
    inside = [path for path in sorted(folder.iterdir()) if path.is_file() and reader_of(path)]
    for reader in readers():
        inside += reader.find(folder)
    if not inside:
        raise InputError(f"{folder} holds no .npy file, no .parquet file and no Run<number>/{MAP_FILE}")
    return inside


def _unknown(path: Path) -> str:
    """Why no reader takes the file, and what to do."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".json", ".jsonl", ".csv")):
        return f"{path} holds no maps: a golden JSON is given by --golden, a table of luminosity by --lumi"
    if name.endswith(".npz"):
        return f"{path} is an archive of arrays: save each as .npy"
    if name.endswith((".npy", ".parquet")):
        return f"{path} is compressed: unpack it first"
    return (
        f"{path} is no .npy file and no .parquet file: `import` takes .npy of shape (lumisections, 64, 72), DIALS Parquet, "
        f"Run<number>/{MAP_FILE}, and images as .hdf5 or Parquet"
    )
