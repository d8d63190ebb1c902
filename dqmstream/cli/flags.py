"""`dqmstream flags`: the runs that a lumisection looks like, whether it is of none of them, what has failed in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dqmstream.cli import output
from dqmstream.cli.options import LEAST_RATE, MAX_RATE, Json, finite, show, with_settings
from dqmstream.errors import InputError
from dqmstream.lumisection import MAX_NUMBER
from dqmstream.settings import Settings


@with_settings("archive", "state", "name")
def flags(
    settings: Settings,
    runs: Annotated[
        list[int] | None, typer.Option("--run", max=MAX_NUMBER, help="this run only; may be given more than once")
    ] = None,
    alarms: Annotated[
        float,
        typer.Option(min=1e-12, max=MAX_RATE, callback=finite, help="share of a known run's lumisections that may be flagged"),
    ] = 0.01,
    rate: Annotated[
        float,
        typer.Option(min=LEAST_RATE, max=MAX_RATE, callback=finite, help="share of the channels named that may be chance"),
    ] = 0.05,
    out: Annotated[Path | None, typer.Option("--out", help="CSV file, a line for each lumisection", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Flag lumisections by the newest checkpoint of a learner, which may run meanwhile: nothing of it is written.

    The new-run score is the logarithm of a Bayes factor of a lumisection and the 29 before it against the known run nearest to
    them; what is flagged has p = exp(-score) at most the rate of --alarms. Luminosity is no news. What is faulty has at most
    that probability to be good, by the counts of its run so far against gains that are followed from run to run: drift is no
    fault.
    """
    from dqmstream.learners.stream.flags import Flagger, write_table
    from dqmstream.storage.archive import Archive as Reader

    if out is not None and out.suffix != ".csv":
        raise InputError(f"flags are written as CSV: give --out a name that ends with .csv, not {out.name}")
    reader = Reader.open(settings.need("archive"))
    flagger = Flagger(reader, settings.state_path / settings.name)
    found = [flagger.flags(run, alarms, rate) for run in runs or [known.run for known in reader.runs()]]
    result = {"learnt": flagger.runs, "alarms": alarms, "rate": rate, "runs": [one.summary() for one in found]}
    result["warnings"] = flagger.warnings(found)
    if out is not None:
        write_table(out, found)
        result["file"] = str(out)
    show(result, as_json, *output.describe_flags(result))
