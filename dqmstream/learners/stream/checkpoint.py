"""Checkpoints: everything that the next experience depends on, written whole or not at all. Nothing is pickled.

    checkpoints/000003/arrays.safetensors    weights, heads, memories, references, statistics, as named arrays
    checkpoints/000003/checkpoint.json       experience, runs, strategy, seed, sizes, and the SHA-256 of the arrays

Writing one is the commit point of an experience: after a crash, history past the last checkpoint is dropped and written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dqmstream.errors import StateError
from dqmstream.storage.failures import system_error
from dqmstream.storage.locks import naming

FORMAT = 1
KEEP = 2


@dataclass(frozen=True)
class CheckpointMeta:
    """The metadata of a checkpoint.

    experience: its number; of a checkpoint between runs, the number of the window's ledger line. runs: the run of each
    experience. threads: CPU threads; the same bits are computed only with as many. pools: the numerical libraries, each with
    version, kind of processor and threads (`learners.threads`); empty in an older checkpoint. windows: how many were counted.
    temperature, correlation: of the probabilities, from validation lumisections (`learners.evaluation.by_last.Temper`); None
    where there were none, and in an older checkpoint.
    """

    experience: int
    runs: list[int]
    strategy: str
    seed: int
    memory_bytes: int
    archive_id: str
    snapshot: str
    threads: int
    dqmstream: str
    windows: int = 0
    pools: list[str] = field(default_factory=list)
    temperature: float | None = None
    correlation: float | None = None
    sha256: str = ""
    format: int = FORMAT


def save(folder: Path, meta: CheckpointMeta, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the checkpoint of meta.experience in the folder, then remove all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{meta.experience:06d}"
    partial = folder / f".{target.name}.partial"
    for leftover in (partial, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir()
    try:
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, partial / "arrays.safetensors")
    except SafetensorError as error:
        if number := system_error(error):
            raise OSError(number, os.strerror(number), str(partial)) from error
        raise
    digest = hashlib.sha256((partial / "arrays.safetensors").read_bytes()).hexdigest()
    with naming(partial):
        (partial / "checkpoint.json").write_text(json.dumps({**asdict(meta), "sha256": digest}, indent=1))
    for path in (*partial.iterdir(), partial):
        _fsync(path)
    partial.rename(target)
    _fsync(folder)
    for old in _numbered(folder)[:-KEEP]:
        shutil.rmtree(old)


def load_newest(folder: Path) -> tuple[CheckpointMeta, dict[str, np.ndarray]] | None:
    """The newest checkpoint in the folder; None if there is none.

    Raises StateError for one that is damaged or that a newer version wrote.
    """
    found = _numbered(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        stored = json.loads((newest / "checkpoint.json").read_text())
        if stored.get("format") != FORMAT:
            raise StateError(f"{newest} has format {stored.get('format')}, this dqmstream reads {FORMAT}: upgrade dqmstream")
        meta = CheckpointMeta(**stored)
        arrays = load_file(newest / "arrays.safetensors")
        digest = hashlib.sha256((newest / "arrays.safetensors").read_bytes()).hexdigest()
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise StateError(f"{newest} cannot be read: {error}; remove that folder to resume from the one before") from error
    if digest != meta.sha256:
        raise StateError(f"{newest} is damaged (SHA-256 differs): remove that folder to resume from the one before")
    return meta, arrays


def learnt(folder: Path) -> int:
    """How many experiences the newest checkpoint in the folder has learnt."""
    found = _numbered(folder)
    return int(found[-1].name) + 1 if found else 0


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir()) if folder.exists() else []


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
