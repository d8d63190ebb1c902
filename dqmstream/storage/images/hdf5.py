"""Opening HDF5 data sets that may come from anybody: stored in this file, complete, and in pieces of a bounded size.

HDF5 can refer to other files (external links, external storage, virtual data sets), can claim any shape without storing a
value, and can ask for a filter that is loaded as a library. All of these are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path

import h5py

from dqmstream.errors import InputError

MAX_ROWS = 1 << 24
"""Most rows of a data set: 17 million, about 20 times the largest published one."""

MAX_CHUNK_BYTES = 256 << 20
"""Most bytes of values that are decompressed together."""

BUILT_IN_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_LZF,
}


@contextmanager
def open_data_sets(path: Path, names: Sequence[str]) -> Iterator[list[h5py.Dataset]]:
    """The data sets of these names at the root of the file at path, open for reading.

    Raises InputError, with the reason, for a file that cannot be read or trusted: at the start and while it is read.
    """
    with ExitStack() as opened:
        try:
            file = opened.enter_context(h5py.File(path, "r"))
            found = [_checked(path, file, name, names) for name in names]
        except (
            OSError,
            KeyError,
            RuntimeError,
            ValueError,
        ) as error:  # HDF5 raises any of them
            raise InputError(f"{path} cannot be read as HDF5: {error}") from error
        try:
            yield found
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path} is damaged: {error}") from error


def _checked(path: Path, file: h5py.File, name: str, names: Sequence[str]) -> h5py.Dataset:
    """The data set, if it is stored completely in this file. Raises InputError otherwise."""
    link = file.get(name, getlink=True) if name in file.keys() else None  # noqa: SIM118  `in file` would follow a link
    if link is None:
        held = ", ".join(sorted(file.keys())[:10]) or "nothing"
        raise InputError(f"{path} must hold the data sets {' and '.join(names)}, and holds {held}")
    if not isinstance(link, h5py.HardLink):
        where = f"of {link.filename}" if isinstance(link, h5py.ExternalLink) else f"({link.path})"
        raise InputError(
            f"{path}: {name} is a link to another place {where}, which is not followed: copy the data into the file"
        )
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{path}: {name} is a group, no data set")
    if found.is_virtual or found.external:
        raise InputError(f"{path}: the values of {name} lie in other files, which are not read: copy them into the file")
    if found.shape is None or found.dtype.kind not in "iufb":
        raise InputError(f"{path}: {name} is {found.dtype} of shape {found.shape}, and must be numbers")
    _check_stored(path, name, found)
    return found


def _check_stored(path: Path, name: str, found: h5py.Dataset) -> None:
    """Raise InputError for a data set whose values are not stored, or cannot be read in pieces."""
    rows = found.shape[0] if found.shape else 0
    if rows > MAX_ROWS:
        raise InputError(f"{path}: {name} has {rows} rows, and no more than {MAX_ROWS} are taken: split the file")
    settings = found.id.get_create_plist()
    filters = {settings.get_filter(k)[0] for k in range(settings.get_nfilters())}
    if unknown := filters - BUILT_IN_FILTERS:
        raise InputError(
            f"{path}: {name} is packed by filter {min(unknown)}, which HDF5 would load as a library: repack it with gzip"
        )
    if found.chunks is None:
        stored, wanted, unit = found.id.get_storage_size(), found.nbytes, "bytes"
    else:
        per_chunk = prod(found.chunks) * found.dtype.itemsize
        if per_chunk > MAX_CHUNK_BYTES:
            raise InputError(
                f"{path}: {name} has chunks of {per_chunk >> 20} MiB, and no more than {MAX_CHUNK_BYTES >> 20} are inflated at "
                "once: rewrite it with smaller ones"
            )
        wanted = prod(-(-size // chunk) for size, chunk in zip(found.shape, found.chunks, strict=True))
        stored, unit = found.id.get_num_chunks(), "chunks"
    if stored < wanted:
        raise InputError(f"{path}: {name} of shape {found.shape} is not there whole: {stored} of {wanted} {unit} are stored")
