"""`dqmstream reference`: a reference made of named runs, which learners use in place of their first run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dqmstream.cli import options
from dqmstream.lumisection import MAX_NUMBER
from dqmstream.settings import Settings


@options.with_settings("archive")
def reference(
    settings: Settings,
    out: Annotated[Path, typer.Option("--out", help="file to write, .safetensors", show_default=False)],
    runs: Annotated[
        list[int] | None,
        typer.Option("--run", max=MAX_NUMBER, help="a good run; repeatable, to fit several together"),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="text file of channels to leave out: depth (from 1), ieta and iphi on each line"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Make a reference of named runs, without known-bad channels, for --reference of learn, replay and consume."""
    from dqmstream.learners.stream.reference_file import make_reference, read_channels, save_reference
    from dqmstream.storage.archive import Archive

    masked = read_channels(mask) if mask else []
    made, about = make_reference(Archive.open(settings.need("archive")), runs or [], masked)
    save_reference(out, made, about)
    result = {"reference": str(out), **asdict(about), "channels": made.channels, "response": made.kind}
    options.show(
        result,
        as_json,
        f"{out}: version {about.version}, {made.channels} channels, {made.kind} response, of run(s) "
        f"{', '.join(map(str, about.runs))}; left out: {len(about.masked)} masked, {len(about.dead)} dead in one of them",
    )
