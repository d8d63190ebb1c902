"""Reference files: a reference that was made from chosen runs of an archive, for learners to use in place of their first run.

    <file>.safetensors    arrays of the reference; in the header, JSON: version, archive, snapshot, runs, masked, dead

The version is a hash of the arrays, by which a learner's state names its reference. Such a reference does not change while a
learner exists: everything learnt is learnt on residuals to it, and past lumisections are not kept to compute new ones. The
reference of a first run changes only under conditions that it did not cover (`Reference.after`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dqmstream.errors import InputError, StateError
from dqmstream.learners.learnable import FEWEST_OF_A_REFERENCE, has_counts, why_left_out
from dqmstream.learners.maps import joined
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part
from dqmstream.learners.stream.ledger import describe, read_experience
from dqmstream.learners.threads import held_threads
from dqmstream.lumisection import IETA, N_IPHI, Geometry, ieta_row
from dqmstream.storage.archive import Archive
from dqmstream.storage.locks import write_atomically

_HEADER = "dqmstream_reference"

Channel = tuple[int, int, int]
"""Depth from 1, ieta, iphi."""


@dataclass(frozen=True)
class ReferenceInfo:
    """The metadata of a reference file.

    version: hash of the arrays. runs: the reference was fitted on their train parts, read at the snapshot. masked: channels
    left out because they were listed. dead: channels left out because they counted nothing in one of the runs.
    """

    version: str
    archive_id: str
    snapshot: str
    runs: list[int]
    masked: list[Channel]
    dead: list[Channel]


def make_reference(archive: Archive, runs: Sequence[int], masked: Sequence[Channel] = ()) -> tuple[Reference, ReferenceInfo]:
    """Fit a reference on the joined train parts of runs, as the archive holds them now.

    A channel that counts nothing in one of the runs is left out, since its mean would fit none of the runs. Raises InputError
    for runs that are too short, a channel that does not exist, or where no channel is left.
    """
    if not runs:
        raise InputError("a reference needs a run: name one by --run")
    mask = np.zeros(archive.geometry.shape, dtype=bool)
    for channel in masked:
        mask[_index(channel, archive.geometry)] = True
    parts = []
    for run in dict.fromkeys(runs):
        line = describe(archive, run, 0)
        if line.left_out:
            raise InputError(f"run {run} cannot be a reference, it is {line.left_out}")
        data = read_experience(archive, line)
        if why := why_left_out(data, as_reference=False):
            raise InputError(f"run {run} cannot be a reference, it is {why}")
        parts.append(data.part(Part.TRAIN))
    together = sum(int(has_counts(part).sum()) for part in parts)
    if together < FEWEST_OF_A_REFERENCE:
        raise InputError(
            f"these runs are too short for a reference: {together} lumisections for train count anything, and "
            f"{FEWEST_OF_A_REFERENCE} are needed: name more runs by --run"
        )
    counted = np.array([(part.counts > 0).any(axis=0) for part in parts])
    dead = counted.any(axis=0) & ~counted.all(axis=0) & ~mask
    with held_threads():
        reference = Reference.fit(joined(parts), mask | dead)
    return reference, ReferenceInfo(
        version=reference.version,
        archive_id=archive.archive_id,
        snapshot=archive.snapshot,
        runs=list(dict.fromkeys(runs)),
        masked=_channels(mask),
        dead=_channels(dead),
    )


def save_reference(path: Path, reference: Reference, about: ReferenceInfo) -> None:
    """Write the file, whole or not at all. Raises InputError if it cannot be written or is not named .safetensors."""
    if path.suffix != ".safetensors":
        raise InputError(f"a reference is a .safetensors file: name it {path.with_suffix('.safetensors')}, not {path}")
    arrays = {name: np.asarray(array, order="C") for name, array in reference.state().items()}
    try:
        write_atomically(path, save(arrays, {_HEADER: json.dumps(asdict(about))}))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def load_reference(path: Path, geometry: Geometry) -> tuple[Reference, ReferenceInfo]:
    """Read what `save_reference` wrote.

    Raises InputError for any other file, for damaged arrays, or for a reference of another geometry.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get(_HEADER)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        if header is None:
            raise InputError(f"{path} is no reference: make one with `dqmstream reference`")
        about = ReferenceInfo(**json.loads(header))
        reference = Reference.from_state(arrays)
    except (OSError, SafetensorError, ValueError, TypeError, StateError) as error:
        raise InputError(f"{path} cannot be read as a reference: {error}") from error
    if reference.version != about.version:
        raise InputError(f"{path} is damaged: its arrays are of version {reference.version}, its header says {about.version}")
    if reference.live.shape != geometry.shape:
        raise InputError(f"{path} is of maps of shape {reference.live.shape}, the archive's are of {geometry.shape}")
    return reference, about


def read_channels(path: Path) -> list[Channel]:
    """Channels listed in a text file: depth (from 1), ieta and iphi on each line; # begins a comment. Raises InputError."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no text: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            depth, ieta, iphi = map(int, words)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: give depth, ieta and iphi, three whole numbers, not {line!r}") from error
        found.append((depth, ieta, iphi))
    return found


def _index(channel: Channel, geometry: Geometry) -> tuple[int, int, int]:
    depth, ieta, iphi = channel
    if not (1 <= depth <= geometry.depths and 1 <= abs(ieta) <= IETA.max() and 1 <= iphi <= N_IPHI):
        raise InputError(f"no map of {geometry.depths} depth(s) has a channel depth {depth}, ieta {ieta}, iphi {iphi}")
    return depth - 1, ieta_row(ieta), iphi - 1


def _channels(mask: np.ndarray) -> list[Channel]:
    return [(int(depth) + 1, int(IETA[row]), int(column) + 1) for depth, row, column in np.argwhere(mask)]
