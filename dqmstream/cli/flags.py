"""`dqmstream flags`: which known run each lumisection looks like, whether it is new, and which channels have failed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dqmstream.cli import output
from dqmstream.cli.options import LEAST_RATE, MAX_RATE, Json, finite, show, with_settings
from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER
from dqmstream.settings import Settings

MAX_LAST = 10_000


@with_settings("archive", "state", "name")
def flags(
    settings: Settings,
    runs: Annotated[list[int] | None, typer.Option("--run", max=MAX_NUMBER, help="only this run; repeatable")] = None,
    alarms: Annotated[
        float,
        typer.Option(
            min=1e-12,
            max=MAX_RATE,
            callback=finite,
            help="rate of false alarms: share of lumisections of a known run that may be flagged",
        ),
    ] = 0.01,
    rate: Annotated[
        float,
        typer.Option(
            min=LEAST_RATE,
            max=MAX_RATE,
            callback=finite,
            help="false-discovery rate: share of the named channels that may be there by chance",
        ),
    ] = 0.05,
    last: Annotated[
        int, typer.Option("--last", min=1, max=MAX_LAST, help="lumisections that name a run together, up to the one itself")
    ] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", help="CSV file to write, a line for each lumisection", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Flag lumisections that look like no known run, and lumisections with a fault, by the newest checkpoint of a learner.

    flagged: a lumisection and the 29 before it fit no known run. The new-run score is the log of a Bayes factor, for "new"
    against the nearest known run. Changes of luminosity are ignored.

    faulty: something has failed, by the counts of the run so far against gains that are followed from run to run. Slow drift is
    no fault.

    Both mean p <= --alarms, where p is the share of known lumisections that score as high, by those that were not used for
    learning. With too few of them, flagged means exp(-score) <= --alarms and faulty P(no fault) <= --alarms, and a warning says
    so: these hold only where the detector follows the law of the response.

    The last 8 lumisections together (--last) name the most probable known run by the sum of their log-probabilities.

    The learner may run at the same time; its state is only read. docs/glossary.md defines known, new, flagged, faulty, failed.
    """
    from dqmstream.learners.stream.flags import Flagger
    from dqmstream.learners.stream.run_flags import write_table
    from dqmstream.storage.archive import Archive as Reader

    if out is not None and out.suffix != ".csv":
        raise InputError(f"flags are written as CSV: give --out a name that ends with .csv, not {out.name}")
    reader = Reader.open(settings.need("archive"))
    flagger = Flagger(reader, settings.state_path / settings.name)
    found = [flagger.flags(run, alarms, rate, last) for run in runs or [known.run for known in reader.runs()]]
    result = {"learnt": flagger.runs, "alarms": alarms, "rate": rate, "last": last, "runs": [one.summary() for one in found]}
    result |= {"calibrated": flagger.calibrated(alarms), "law": flagger.law, "warnings": flagger.warnings(found, alarms)}
    if out is not None:
        write_table(out, found)
        result["file"] = str(out)
    show(result, as_json, *describe_flags(result))


def describe_flags(result: dict[str, Any]) -> list[Any]:
    """A line for each run, and tables of the channels that changed or failed."""
    rows = [
        [
            str(one["run"]), "yes" if one["learnt"] else "no", str(one["lumisections"]), str(one["flagged"]),
            f"{one['median_score']:+.1f}", str(one["most_probable"]), f"{one['probability']:.2f}",
            one["by_last"]["most_probable"], f"{one['by_last']['named_so'] / one['lumisections']:.2f}",
            str(len(one["channels"])), str(one["faulty"]), str(len(one["faults"])),
        ]
        for one in result["runs"]
    ]  # fmt: skip
    columns = ["run", "known", "lumisections", "flagged", "median score", "most probable", "probability"]
    columns += [f"by last {result['last']}", "share", "channels", "faulty", "failed"]
    unsure = [name for key, name in (("new_run", "flagged"), ("fault", "faulty")) if not result["calibrated"][key]]
    title = f"flags, false alarms at {result['alarms']:g}" + (f" (not calibrated: {', '.join(unsure)})" if unsure else "")
    parts: list[Any] = [output.table(title, columns, rows)]
    for one in result["runs"]:
        if one["flagged"] and one["channels"]:
            found = [
                [
                    f"{c['ieta']}, {c['iphi']}, {c['depth']}", f"{c['pull']:+.1f}", output.probability(c["p"]),
                    f"{c['expected']:.1f}", f"{c['seen']:.1f}",
                ]
                for c in one["channels"][:output.SHOWN_CHANGES]
            ]  # fmt: skip
            title = f"run {one['run']} against {one['against']}, {len(one['channels'])} channels"
            parts.append(output.table(title, ["ieta, iphi, depth", "pull", "p", "expected", "seen"], found))
        if one["faults"]:
            failed = [
                [f"{c['ieta']}, {c['iphi']}, {c['depth']}", *(str(c[name]) for name in ("lumisections", "first", "last"))]
                for c in one["faults"][: output.SHOWN_CHANGES]
            ]
            title = f"run {one['run']}, {len(one['faults'])} channels with a fault"
            parts.append(output.table(title, ["ieta, iphi, depth", "lumisections", "first", "last"], failed))
    parts += [f"warning: {warning}" for warning in result["warnings"]]
    if "file" in result:
        parts.append(f"written: {result['file']}")
    return parts
