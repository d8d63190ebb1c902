"""`dqmstream compare`: two files or two archived runs, and which channels changed between them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from dqmstream.cli import output
from dqmstream.cli.options import LEAST_RATE, MAX_RATE, Archive, Interpolated, Json, finite, show
from dqmstream.errors import NOT_COMPARABLE
from dqmstream.settings import load_settings

_HELP = "a .npy file of a run, or a run number with --archive"


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_HELP, show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help=_HELP, show_default=False)],
    archive: Archive = None,
    interpolated: Interpolated = False,
    rate: Annotated[
        float,
        typer.Option(min=LEAST_RATE, max=MAX_RATE, callback=finite, help="false-discovery rate of what is named"),
    ] = 0.05,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the map (PNG) and the tables (CSV, JSON)", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare two runs: which channels and readout boxes changed, and whether luminosity alone tells the runs apart.

    Files are named Run<number>_Dataset_<name>.npy, with shape (n, 64, 72); Run<number>_events.npy in the same folder is used.
    Channels are compared under the same conditions, so changes of luminosity are ignored. A ratio is B's response over A's.
    A factor common to all channels is taken for luminosity or calibration, and is not seen. If the runs share no conditions,
    channels are compared with their rings, with larger errors. If most channels cannot be tested, the exit code is 10.
    """
    from dqmstream.experiments.compare.compare import compare_pair
    from dqmstream.experiments.compare.output import as_json as describe
    from dqmstream.experiments.compare.output import check_folder, write
    from dqmstream.experiments.compare.pair import read_pair

    if out is not None:
        check_folder(out)
    pair = read_pair(a, b, load_settings(archive=archive).archive, interpolated)
    comparison = compare_pair(pair, rate)
    result = describe(comparison)
    if out is not None:
        result["files"] = [str(path) for path in write(comparison, out)]
    show(result, as_json, *describe_comparison(result))
    if not comparison.comparable:
        raise typer.Exit(NOT_COMPARABLE)


def describe_comparison(result: dict[str, Any]) -> list[Any]:
    """Tables of both AUC and of what changed, with the verdict and the warnings."""
    rows = [
        [what, f"{auc['value']:.3f}", f"{auc['low']:.3f} to {auc['high']:.3f}"]
        for what, auc in (("channels, under their conditions", result["auc"]), ("luminosity alone", result["luminosity_auc"]))
        if auc
    ]
    interval = f"{result['confidence']:.0%} interval"
    title = f"{result['b']['name']} against {result['a']['name']}"
    parts: list[Any] = [
        output.table(title, ["told apart by", "AUC", interval], rows) if rows else title,
        result["verdict"],
        *(f"Warning: {warning}" for warning in result["warnings"]),
    ]
    if any(result[side]["values"] != "counts" for side in ("a", "b")):
        parts.append("values: " + ", ".join(f"{result[side]['name']} {result[side]['values']}" for side in ("a", "b")))
    if result["boxes"]:
        found = [[f"RBX {box['rbx']:+d}", str(box["channels"]), *_change(box)] for box in result["boxes"]]
        parts.append(output.table("readout boxes that changed", ["box", "channels", *_CHANGE], found[: output.SHOWN_CHANGES]))
    if result["changed"]:
        found = [
            [f"{c['ieta']}, {c['iphi']}, {c['depth']}", f"{c['rbx']:+d}", *_change(c), c["state"].replace("changed", "")]
            for c in result["changed"]
        ]
        parts.append(
            output.table("channels that changed", ["ieta, iphi, depth", "RBX", *_CHANGE, ""], found[: output.SHOWN_CHANGES])
        )
    moved = {box["rbx"] for box in result["boxes"]}
    inside = sum(c["rbx"] in moved for c in result["changed"])
    left = max(len(result["changed"]) - output.SHOWN_CHANGES, 0)
    parts.append(
        f"{len(result['changed'])} of {result['channels_tested']} channels"
        + (f" ({inside} of them in boxes that changed)" if inside else "")
        + f" and {len(result['boxes'])} of {result['boxes_tested']} readout boxes changed"
        + f", at a false-discovery rate of {result['rate']:g} each"
        + (f"; {left} channels are not shown: --out and --json list all" if left else "")
    )
    parts.append(result["unseen"])
    if "files" in result:
        parts.append("written: " + ", ".join(result["files"]))
    return parts


def _change(found: dict[str, Any]) -> list[str]:
    ratio = "new" if math.isinf(found["ratio"]) else f"{found['ratio']:.4f}"
    error = "-" if math.isnan(found["ratio_error"]) else f"{found['ratio_error']:.4f}"
    return [ratio, error, f"{found['pull']:+.1f}", output.probability(found["p"]), output.probability(found["q"])]


_CHANGE = ["ratio", "error", "pull", "p", "q"]
