"""`dqmstream import`: files of lumisections or of images into an archive, and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dqmstream.cli import output
from dqmstream.cli.options import Interpolated, Json, show, with_settings
from dqmstream.lumisection import MAX_NUMBER
from dqmstream.settings import Settings


@with_settings("archive", "dtype", "depths", "source", "max_events")
def import_(
    settings: Settings,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="maps as .npy (n, 64, 72) or wider, DIALS Parquet, Run<number>/output__depth.npy; images as .hdf5 or Parquet; "
            "or folders of them",
            show_default=False,
        ),
    ] = None,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="golden JSON, kept in the archive as a new version of its labels")
    ] = None,
    golden_only: Annotated[bool, typer.Option("--golden-only", help="file no lumisection that --golden does not name")] = False,
    luminosity: Annotated[
        list[Path] | None,
        typer.Option(
            "--lumi",
            help="pileup, luminosity, events or HLT rates by lumisection (OMS, brilcalc): .csv, .json or .parquet; repeatable",
        ),
    ] = None,
    hlt_path: Annotated[
        str | None,
        typer.Option("--hlt-path", help="trigger path whose rate gives events, of HLT rates by --lumi (default: HLT_ZeroBias)"),
    ] = None,
    crop: Annotated[
        bool, typer.Option("--crop", help="of wider maps, leave out what lies beyond |ieta| 32, which else is refused")
    ] = False,
    run: Annotated[
        int | None, typer.Option(max=MAX_NUMBER, help="run number of the only file, where its name has none")
    ] = None,
    interpolated: Interpolated = False,
    as_json: Json = False,
) -> None:
    """Import runs, or images, from files. All are checked before anything is written; importing twice changes nothing.

    It says what was taken, what was dropped and why. Images go to an archive of their own.
    """
    from dqmstream.storage.imports.import_data import ImportOptions, import_data

    with output.bars() as progress:
        kept = {stage: output.bar_callback(progress, stage) for stage in ("read", "check", "import")}
        options = ImportOptions(
            settings.dtype, settings.depths, settings.source,
            run=run, interpolated=interpolated, crop=crop, golden=golden, golden_only=golden_only,
            luminosity=luminosity or (), hlt_path=hlt_path, max_events=settings.max_events,
        )  # fmt: skip
        done = import_data(settings.need("archive"), files or [], options, lambda stage, n, total: kept[stage](n, total))
    show(done, as_json, *output.describe_imported(done))
