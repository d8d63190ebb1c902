"""`dqmstream simulate`: runs of occupancy maps, or images, whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dqmstream.cli import output, studies
from dqmstream.cli.options import MAX_LENGTH, MAX_RUNS, Json, Stream, show
from dqmstream.errors import InputError
from dqmstream.settings import MAX_SEED

TABLES = "Runs of your own tables"


def simulate(
    out: Annotated[Path, typer.Argument(help="folder for the files, new or empty")],
    stream: Stream = "moderate",
    seed: Annotated[
        int, typer.Option(max=MAX_SEED, help="seed of the stream: 0-9 are for tuning, 100 and up for reported results")
    ] = 0,
    runs: Annotated[int | None, typer.Option(max=MAX_RUNS, help="number of runs (default: that of the stream)")] = None,
    lumisections: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_LENGTH,
            help="lumisections in each run, in campaign at most so many (default: those of the stream: 400, for pair 501 and "
            "1046, for campaign 6 to 2800)",
        ),
    ] = None,
    interpolate_to: Annotated[
        int | None,
        typer.Option(max=MAX_LENGTH, help="rows a run, interpolated between lumisections; the published files have 10000"),
    ] = None,
    depths: Annotated[int, typer.Option(help="1 for HE depth 1 (932 channels), or 7 for all depths of HB, HE and HF")] = 1,
    conditions: Annotated[
        list[Path] | None,
        typer.Option(
            "--conditions",
            help="own table of runs, lumisections, pileup, luminosities and flags, as OMS writes it (JSON, CSV or Parquet); "
            "repeatable",
            rich_help_panel=TABLES,
        ),
    ] = None,
    rates: Annotated[
        list[Path] | None,
        typer.Option(
            "--rates",
            help="own table of trigger rates by run and path, which give the events of each lumisection; repeatable",
            rich_help_panel=TABLES,
        ),
    ] = None,
    hlt_path: Annotated[
        str, typer.Option("--hlt-path", help="trigger whose rate gives events, without version", rich_help_panel=TABLES)
    ] = "HLT_ZeroBias",
    layout: studies.Layout = None,
    images: studies.Images = 2000,
    contrast: studies.Contrast = 1.0,
    as_json: Json = False,
) -> None:
    """Simulate HCAL runs as .npy files in the original layout, with truth.json; or images for the earlier studies (--layout).

    With --conditions the runs have the numbers, lengths, pileup and events of your own tables, and the detector changes as in
    the stream. A lumisection takes 37 kB (65 kB at 7 depths): `year` with its 1000 runs takes 15 GB, `pair` with
    --interpolate-to 10000 takes 740 MB.
    """
    if layout is not None:
        if conditions or rates or depths != 1:
            raise InputError("--layout simulates images: leave out --conditions, --rates and --depths, or --layout")
        studies.simulate(out, layout, images, seed, contrast, as_json)
        return
    from dqmstream.experiments.simulator import write
    from dqmstream.experiments.simulator.tables import read_conditions

    if rates and not conditions:
        raise InputError("--rates gives the events of the runs of a table of conditions: give that with --conditions")
    given = read_conditions(conditions, rates or (), hlt_path) if conditions else None

    with output.bars() as progress:
        paths = write(
            out, stream, seed, runs, lumisections,
            interpolate_to=interpolate_to, depths=depths, given=given,
            progress=output.bar_callback(progress, f"simulate {stream}"),
        )  # fmt: skip
    notes = list(given.notes) if given else []
    result = {"out": str(out), "stream": stream, "seed": seed, "files": [path.name for path in paths], "notes": notes}
    show(result, as_json, *notes, f"{len(paths)} files in {out}")
