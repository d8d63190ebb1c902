"""`dqmstream simulate`: runs of occupancy maps, or images, whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dqmstream.cli import output, studies
from dqmstream.cli.options import MAX_LENGTH, MAX_RUNS, Json, Stream, show
from dqmstream.settings import MAX_SEED


def simulate(
    out: Annotated[Path, typer.Argument(help="folder for the files, new or empty")],
    stream: Stream = "moderate",
    seed: Annotated[
        int, typer.Option(max=MAX_SEED, help="seeds make streams: 0-9 for tuning, 100 and up for what is reported")
    ] = 0,
    runs: Annotated[int | None, typer.Option(max=MAX_RUNS, help="number of runs (default: the stream's own)")] = None,
    lumisections: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_LENGTH, help="lumisections in each run (default: the stream's own; 400, of pair 501 and 1046)"
        ),
    ] = None,
    interpolate_to: Annotated[
        int | None,
        typer.Option(max=MAX_LENGTH, help="rows a run, interpolated between lumisections, as in the published files (10000)"),
    ] = None,
    layout: studies.Layout = None,
    images: studies.Images = 2000,
    contrast: studies.Contrast = 1.0,
    as_json: Json = False,
) -> None:
    """Simulate HCAL runs: .npy files in the original layout, sidecars, and truth.json; or images for the earlier studies.

    A lumisection takes 37 kB: year, at its 1000 runs, writes 15 GB, and pair with --interpolate-to 10000 740 MB.
    """
    if layout is not None:
        studies.simulate(out, layout, images, seed, contrast, as_json)
        return
    from dqmstream.experiments.simulator import write

    with output.bars() as progress:
        paths = write(
            out, stream, seed, runs, lumisections,
            interpolate_to=interpolate_to, progress=output.bar_callback(progress, f"simulate {stream}"),
        )  # fmt: skip
    result = {"out": str(out), "stream": stream, "seed": seed, "files": [path.name for path in paths]}
    show(result, as_json, f"{len(paths)} files in {out}")
