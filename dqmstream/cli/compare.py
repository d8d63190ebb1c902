"""`dqmstream compare`: two files or two archived runs, and which channels changed between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dqmstream.cli import output
from dqmstream.cli.options import LEAST_RATE, MAX_RATE, Archive, Interpolated, Json, finite, show
from dqmstream.errors import NOT_COMPARABLE
from dqmstream.settings import load_settings

_HELP = "a .npy file of a run, or with --archive the number of one"


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_HELP, show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help=_HELP, show_default=False)],
    archive: Archive = None,
    interpolated: Interpolated = False,
    rate: Annotated[
        float, typer.Option(min=LEAST_RATE, max=MAX_RATE, callback=finite, help="share of what is named that may be chance")
    ] = 0.05,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for map (PNG) and tables (CSV, JSON)", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two runs: which channels and readout boxes changed, how well they are told apart, and by luminosity alone.

    Files are Run<number>_Dataset_<name>.npy of shape (n, 64, 72); Run<number>_events.npy is taken where it lies beside.
    Channels are compared under the same conditions, so that luminosity is no change. A ratio is B's response over A's.
    A factor common to all channels is taken for luminosity or calibration, and not seen. Where the runs share no conditions,
    channels are compared with their rings, with a larger error. If most channels cannot be tested, the exit code is 10.
    """
    from dqmstream.experiments.compare.comparison import compare as run
    from dqmstream.experiments.compare.inputs import read_pair
    from dqmstream.experiments.compare.output import as_json as describe
    from dqmstream.experiments.compare.output import check_folder, write

    if out is not None:
        check_folder(out)
    pair = read_pair(a, b, load_settings(archive=archive).archive, interpolated)
    comparison = run(pair, rate)
    result = describe(comparison)
    if out is not None:
        result["files"] = [str(path) for path in write(comparison, out)]
    show(result, as_json, *output.describe_comparison(result))
    if not comparison.comparable:
        raise typer.Exit(NOT_COMPARABLE)
