"""`dqmstream report`: what was learnt and forgotten, and which channels changed, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dqmstream.cli import output
from dqmstream.cli.options import Json, show, with_settings
from dqmstream.settings import Settings


@with_settings("archive", "state")
def report(
    out: Annotated[
        Path, typer.Option("--out", help="folder for the report: a new one, or that of an older report", show_default=False)
    ],
    settings: Settings,
    benchmark: Annotated[
        Path | None,
        typer.Option("--benchmark", help="folder of a finished benchmark, to report on in place of an archive"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a page (HTML, PNG) of what was learnt and forgotten, and of which channels changed."""
    if benchmark is not None:
        from dqmstream.experiments.benchmark.page import write_benchmark_report

        page = write_benchmark_report(benchmark, out)
        show({"report": str(page)}, as_json, f"report: {page}")
        return
    from dqmstream.experiments.report.report import write_report
    from dqmstream.storage.archive import Archive

    with output.bars() as progress:
        kept = output.bar_callback(progress, "draw")
        page = write_report(
            Archive.open(settings.need("archive")), settings.state_path, out, progress=lambda _, n, total: kept(n, total)
        )
    show({"report": str(page)}, as_json, f"report: {page}")
