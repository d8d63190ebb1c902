"""The whole of an import: files of lumisections or of images, by their content, and labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_EVENTS, Geometry
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import Imported, import_runs
from dqmstream.storage.imports.rules import ImportRules
from dqmstream.storage.labels.filing import file_golden, file_luminosity
from dqmstream.storage.labels.golden import read_golden
from dqmstream.storage.labels.luminosity import read_tables
from dqmstream.storage.labels.trigger_rates import ZERO_BIAS

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ImportOptions:
    """What `import` is asked beside archive and files; each field is the command's flag of that name, `luminosity` is --lumi.

    dtype, depths: of a new archive; None: float32, 1. source: dataset and monitoring element to file everything under.
    run: number of the only file, where its name has none. interpolated: mark every row as interpolated. crop: leave out counts
    beyond |ieta| 32. golden: a golden JSON. golden_only: file no lumisection that it does not name. luminosity: tables of
    conditions. hlt_path: trigger path whose rate gives events; None: zero bias. max_events: most events of a lumisection.
    """

    dtype: str | None = None
    depths: int | None = None
    source: str | None = None
    run: int | None = None
    interpolated: bool = False
    crop: bool = False
    golden: Path | None = None
    golden_only: bool = False
    luminosity: Sequence[Path] = ()
    hlt_path: str | None = None
    max_events: float = MAX_EVENTS


def import_data(
    path: Path,
    files: Sequence[Path],
    options: ImportOptions,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Import files, and folders of them, into the archive at path, which is made where it is missing.

    Returns what `import --json` prints: the archive, its kind ("lumisections" or "images"), what was taken from each file and
    what was not, and the new labels. progress: called with the stage ("read", "check", "import"), done, total. Raises
    InputError for a file or option that cannot be used, before anything is written.
    """
    from dqmstream.storage.images.archive import import_images
    from dqmstream.storage.images.source import images_among, left_out

    _check_options(options)
    if images := images_among(files):
        _refuse_for_images(options, images[0])
        done = [asdict(file) for file in import_images(images, path, progress)]
        return {"archive": str(path), "kind": "images", "files": done, "notes": left_out(files)}
    if not (files or options.golden or options.luminosity):
        raise InputError("nothing to import: name files, or give --golden FILE or --lumi FILE for an existing archive")
    return {"archive": str(path), "kind": "lumisections", **_import_lumisections(path, files, options, progress)}


def _check_options(options: ImportOptions) -> None:
    """Raise InputError for options that exclude or need each other."""
    if options.golden_only and not options.golden:
        raise InputError("--golden-only needs the golden JSON: give --golden FILE too")
    if options.hlt_path and not options.luminosity:
        raise InputError("--hlt-path is for a table of HLT rates: give --lumi FILE too")
    if options.interpolated and (options.golden_only or options.luminosity):
        flag = "golden-only" if options.golden_only else "lumi"
        raise InputError(
            f"--{flag} goes by lumisection numbers, which interpolated rows do not have: leave out --{flag} or --interpolated"
        )


def _refuse_for_images(options: ImportOptions, image: Path) -> None:
    given = [name for name, value in vars(options).items() if value and name != "max_events"]
    if given:
        flag = given[0].replace("luminosity", "lumi").replace("_", "-")
        raise InputError(f"--{flag} is for files of lumisections, and {image} holds images: leave it out")


def _import_lumisections(path: Path, files: Sequence[Path], options: ImportOptions, progress: Progress) -> dict[str, Any]:
    golden = read_golden(options.golden) if options.golden else None
    tables = read_tables(options.luminosity, options.hlt_path or ZERO_BIAS)
    existing = Archive.open(path) if Archive.exists(path) or not files else None
    done: list[Imported] = []
    if files:
        rules = ImportRules(
            dtype=existing.dtype if existing else np.dtype(options.dtype or "float32"),
            depths=existing.geometry.depths if existing else options.depths,
            run=options.run,
            interpolated=options.interpolated,
            crop=options.crop,
            golden=golden if options.golden_only else None,
            luminosity=tables,
            source=options.source,
            stored_source=existing.source if existing else "",
            scratch=path.parent if os.access(path.parent, os.W_OK) else None,  # a volume's parent may be read-only
            max_events=options.max_events,
        )
        done, beside = import_runs(files, lambda: _open_or_create(path, options), rules, progress)
        tables = [table.for_run(done[0].run) for table in tables] + beside
    archive = Archive.open(path)
    labels = [file_golden(archive, golden)] if golden else []
    labels += [file_luminosity(archive, table) for table in tables]
    notes = [note for table in tables for note in table.notes]
    return {"files": [asdict(file) for file in done], "labels": [asdict(label) for label in labels], "notes": notes}


def _open_or_create(path: Path, options: ImportOptions) -> Archive:
    geometry = Geometry(options.depths) if options.depths else None
    return Archive.open_or_create(path, geometry=geometry, dtype=options.dtype, source=options.source)
