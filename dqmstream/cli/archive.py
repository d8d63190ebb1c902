"""`dqmstream archive`: verify an archive, drop old snapshots, export it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from dqmstream.cli import output
from dqmstream.cli.options import Json, finite, show, with_settings
from dqmstream.cli.terminal import tell
from dqmstream.errors import ArchiveError
from dqmstream.lumisection import MAX_NUMBER
from dqmstream.settings import MAX_AGE_S, Settings

if TYPE_CHECKING:
    from dqmstream.storage.archive import Archive
    from dqmstream.storage.maintenance.findings import Finding

app = typer.Typer(
    name="archive",
    no_args_is_help=True,
    help="Verify an archive, drop old snapshots, export it.",
)

Keep = Annotated[
    float,
    typer.Option(
        "--keep-s",
        min=0,
        max=MAX_AGE_S,
        callback=finite,
        help="keep snapshots without a tag that are younger than this, for programs that read them now",
    ),
]

KEEP_S = 3600.0
SHOWN_FINDINGS = 100


def _open(settings: Settings) -> Archive:
    from dqmstream.storage.archive import Archive

    return Archive.open(settings.need("archive"))


@app.command()
@with_settings("archive")
def verify(settings: Settings, as_json: Json = False) -> None:
    """Read every row and check that nothing is lost, repeated or damaged. Findings are listed, with exit code 5."""
    from dqmstream.storage.images.archive import ImageArchive, is_image_archive
    from dqmstream.storage.maintenance.verify import rows_of
    from dqmstream.storage.maintenance.verify import verify as find

    path = settings.need("archive")
    implausible: list[Finding] = []
    with output.bars() as progress:
        kept = output.bar_callback(progress, "verify")
        reader: Archive | ImageArchive
        if is_image_archive(path):
            reader = ImageArchive.open(path)
            findings, rows = reader.verify(kept), reader.size[0]
        else:
            reader = _open(settings)
            findings = find(reader, kept, max_events=settings.max_events, implausible=implausible)
            rows = rows_of(reader)
    if as_json:
        told = {"archive": str(reader.path), "archive_id": reader.archive_id, "snapshot": reader.snapshot, "rows": rows}
        found = {"findings": list(map(asdict, findings)), "implausible": list(map(asdict, implausible))}
        output.print_json({**told, "layout_version": reader.layout_version, "whole": not findings, **found})
    else:
        if findings:
            _show(findings, f"{len(findings)} findings in {reader.path} ({rows} rows read)")
        else:
            tell(output.out, f"{reader.path} is whole: {rows} rows read, snapshot {reader.snapshot}")
        if implausible:
            _show(implausible, f"{len(implausible)} rows hold counts that would be refused today")
    if findings:
        raise typer.Exit(ArchiveError.exit_code)


def _show(findings: list[Finding], title: str) -> None:
    made = Table(title=title, title_justify="left")
    for column in ("where", "what"):
        made.add_column(column, overflow="fold")
    for finding in findings[:SHOWN_FINDINGS]:
        made.add_row(Text(finding.where), Text(finding.what))
    tell(output.out, made)
    if len(findings) > SHOWN_FINDINGS:
        tell(output.out, f"... {len(findings) - SHOWN_FINDINGS} more; --json lists them all")


@app.command()
@with_settings("archive")
def expire(settings: Settings, keep_s: Keep = KEEP_S, as_json: Json = False) -> None:
    """Drop old snapshots without a tag, and the files that only they needed. No row is lost."""
    reader = _open(settings)
    dropped = reader.expire(keep_s)
    result = {"archive": str(reader.path), "snapshots": dropped}
    show(result, as_json, f"{dropped} snapshots dropped of {reader.path}")


@app.command()
@with_settings("archive")
def compact(settings: Settings, keep_s: Keep = KEEP_S, as_json: Json = False) -> None:
    """Rewrite the index of all chunks into few files, then drop old snapshots. No row and no tag is lost."""
    reader = _open(settings)
    done = reader.compact(keep_s)
    files = (
        f"{done.files_before} files with {done.bytes_before / 1e6:.1f} MB became {done.files} with {done.bytes / 1e6:.1f} MB"
    )
    result = {"archive": str(reader.path), **asdict(done)}
    show(result, as_json, f"{done.snapshots} snapshots dropped of {reader.path}: {files}")


@app.command()
@with_settings("archive")
def export(
    out: Annotated[Path, typer.Argument(help="folder to create, such as NAME.zarr", show_default=False)],
    settings: Settings,
    runs: Annotated[list[int] | None, typer.Option("--run", max=MAX_NUMBER, help="only this run; repeatable")] = None,
    as_json: Json = False,
) -> None:
    """Write plain Zarr v3: one table with the newest revision of every lumisection, ordered by run and number."""
    from dqmstream.storage.maintenance.export import export as write

    reader = _open(settings)
    with output.bars() as progress:
        rows = write(reader, out, runs, output.bar_callback(progress, "export"))
    result = {"archive": str(reader.path), "snapshot": reader.snapshot, "out": str(out), "rows": rows}
    show(result, as_json, f"{rows} lumisections in {out}")
