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
    layout: studies.Layout = None,
    images: studies.Images = 2000,
    contrast: studies.Contrast = 1.0,
    as_json: Json = False,
) -> None:
    """Simulate HCAL runs as .npy files in the original layout, with truth.json; or images for the earlier studies (--layout).

    A lumisection takes 37 kB: `year` with its 1000 runs takes 15 GB, `pair` with --interpolate-to 10000 takes 740 MB.
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
