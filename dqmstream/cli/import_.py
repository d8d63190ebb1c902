"""`dqmstream import`: files of lumisections or of images into an archive, and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
            help="maps: .npy of shape (n, 64, 72) or wider, DIALS Parquet, Run<number>/output__depth.npy; images: .hdf5 or "
            "Parquet; or folders of such files",
            show_default=False,
        ),
    ] = None,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="golden JSON, filed as a new version of the archive's labels")
    ] = None,
    golden_only: Annotated[bool, typer.Option("--golden-only", help="file only lumisections that --golden names")] = False,
    luminosity: Annotated[
        list[Path] | None,
        typer.Option(
            "--lumi",
            help="table of pileup, luminosity, events or HLT rates by lumisection (OMS, brilcalc), .csv, .json or .parquet; "
            "repeatable",
        ),
    ] = None,
    hlt_path: Annotated[
        str | None,
        typer.Option(
            "--hlt-path", help="trigger path of a --lumi table of HLT rates whose rate gives the events (default: HLT_ZeroBias)"
        ),
    ] = None,
    crop: Annotated[
        bool, typer.Option("--crop", help="of wider maps, leave out cells beyond |ieta| 32 (without it such maps are refused)")
    ] = False,
    run: Annotated[int | None, typer.Option(max=MAX_NUMBER, help="run number of a single file whose name has none")] = None,
    interpolated: Interpolated = False,
    as_json: Json = False,
) -> None:
    """Import runs, or images, from files. All files are checked before anything is written; importing twice changes nothing.

    What was taken, what was dropped, and why, is printed. Images go into an archive of their own.
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
    show(done, as_json, *describe_imported(done))


def describe_imported(result: dict[str, Any]) -> list[Any]:
    """A table of what was taken from each file, a table of what was dropped and why, and notes."""
    known = "unchanged"
    if result["kind"] == "images":
        rows = [
            [f["name"], f["rows"], "x".join(map(str, f["shape"])), ", ".join(f["classes"]), known if f["known"] else ""]
            for f in result["files"]
        ]
        return [output.table("imported", ["file", "images", "shape", "classes", "note"], rows), *result["notes"]]
    rows = []
    for f in result["files"]:
        note = known if f["known"] else f"rounded by up to {f['rounding']:.2g} counts" if f["rounding"] else ""
        rows.append([f["name"], f["run"], f["lumisections"], f["rows"], f["duplicates"], f["revisions"], f["scale"], note])
    columns = ["file", "run", "lumisections", "filed", "duplicates", "revisions", "values", "note"]
    parts: list[Any] = [output.table("imported", columns, rows)] if rows else []
    dropped = [[f["name"], f["run"], d["count"], d["what"], d["reason"]] for f in result["files"] for d in f["dropped"]]
    if dropped:
        parts.append(output.table("not taken", ["file", "run", "count", "of", "because"], dropped))
    parts += [f"run {f['run']}: {note}" for f in result["files"] for note in f["notes"]]
    parts += result["notes"]
    parts += [
        f"{label['kind']}: {label['name']} is version {label['version']}" + ("" if label["new"] else ", as before")
        for label in result["labels"]
    ]
    return parts
