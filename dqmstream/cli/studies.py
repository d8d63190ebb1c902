"""The earlier studies on a user's own files: what `dqmstream benchmark --recipe NAME --data PATH` does, and its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from dqmstream.cli import options, output
from dqmstream.errors import InputError
from dqmstream.settings import MAX_COUNT, recipe_flags

PANEL = "An earlier study on your own files (with --data)"

Data = Annotated[
    list[Path] | None,
    typer.Option("--data", help="HDF5, Parquet or Run*_Dataset_*.npy files, a folder of them, or an image archive; --recipe then names a study; more than once", rich_help_panel=PANEL),  # noqa: E501
]  # fmt: skip
Epochs = Annotated[int, typer.Option("--epochs", min=0, max=MAX_COUNT, help="in place of the recipe's", rich_help_panel=PANEL)]
Limit = Annotated[
    int, typer.Option("--limit", min=0, max=MAX_COUNT, help="rows at most, for a quick look", rich_help_panel=PANEL)
]
Size = Annotated[str, typer.Option("--size", help="study, or tiny for a quick look", rich_help_panel=PANEL)]
Folds = Annotated[int, typer.Option("--folds", min=0, max=1000, help="K of a K-fold", rich_help_panel=PANEL)]
Augment = Annotated[list[str] | None, typer.Option("--augment", help="flip, rotate or shift, of images; more than once", rich_help_panel=PANEL)]  # fmt: skip # noqa: E501
Weights = Annotated[Path | None, typer.Option("--weights", help="safetensors file to start from", rich_help_panel=PANEL)]
Listed = Annotated[bool, typer.Option("--list", help="list the studies' recipes and end", rich_help_panel=PANEL)]
IMAGES = "Images in place of runs"
Layout = Annotated[str | None, typer.Option("--layout", help="electron_photon or quark_gluon: the files of these studies", rich_help_panel=IMAGES)]  # fmt: skip # noqa: E501
Images = Annotated[int, typer.Option("--images", max=MAX_COUNT, help="in all files", rich_help_panel=IMAGES)]
Contrast = Annotated[float, typer.Option("--contrast", max=100, callback=options.finite, help="how far apart the classes are, 0 for not at all", rich_help_panel=IMAGES)]  # fmt: skip # noqa: E501


def simulate(out: Path, layout: str, images: int, seed: int, contrast: float, as_json: bool) -> None:
    """Write images whose ideal AUC is known."""
    from dqmstream.experiments.simulator.images import ideal_of, write_images

    with output.bars() as progress:
        paths = write_images(out, layout, images, seed, contrast, output.bar_callback(progress, f"simulate {layout}"))
    ideal = ideal_of([out])
    result = {"out": str(out), "layout": layout, "seed": seed, "files": [path.name for path in paths], "ideal_auc": ideal}
    options.show(result, as_json, f"{len(paths)} files in {out}; the exact likelihood has AUC {output.number(ideal)}")


def list_studies(as_json: bool) -> None:
    """Print every recipe with what was published."""
    from dqmstream.experiments.studies.recipes import WHAT, described, recipes

    found = [
        {"name": one.name, "task": WHAT[one.task], "study": one.study, "published": one.says, **described(one)}
        for one in recipes().values()
    ]
    columns = ["name", "task", "study", "network", "published"]
    table = output.table("studies", columns, [[one[column] for column in columns] for one in found])
    options.show({"studies": found}, as_json, table, "all of each, and what it leaves unsaid: docs/studies.md")


def refuse_without_data(name: Path | None, asked: Sequence[Any]) -> None:
    """Raise InputError where a study, or an option of one, is named without data to try it on."""
    from dqmstream.experiments.studies.recipes import recipes

    if name is not None and str(name) in recipes() and not name.exists():
        raise InputError(f"{name} is the recipe of a study: say by --data which files to try it on")
    if any(asked):
        raise InputError(
            "--epochs, --limit, --size, --folds, --augment, --weights and --device are of a study: give --data and --recipe"
        )


def refuse_streams(*asked: Any) -> None:
    """Raise InputError where simulated streams are asked for beside data."""
    if any(asked):
        raise InputError("--data tries a study: leave out --quick, --stream, --strategy, --table and --dask, or --data")


def run(
    name: Path | None,
    data: Sequence[Path],
    out: Path,
    *,
    set_: list[str] | None,
    seeds: list[int] | None,
    augment: list[str] | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Train a study's recipe on the user's files and print its table. asked: further `studies.sweep.Options`."""
    from dqmstream.experiments.studies.results import COLUMNS, notes, rows, title, write_table
    from dqmstream.experiments.studies.study import Options, prepare, run_study

    if name is None:
        raise InputError("--data needs a study to try on it: --recipe NAME; --list lists them")
    changes = recipe_flags(None, set_) or {}
    chosen = Options(seeds=tuple(seeds or (0,)), augment=tuple(augment or ()), changes=changes, **asked)
    study = prepare(str(name), list(data), chosen)
    with output.bars() as progress:
        result = run_study(study, out, _bar(progress))
    path = write_table(study, result, out)
    table = output.table(title(study), list(COLUMNS), rows(result))
    options.show(
        result | {"table": str(path)}, as_json, table, *notes(study, result), f"table, results and weights: {path.parent}"
    )


def _bar(progress: Progress) -> Callable[[str, Any], None]:
    """A bar a cell, in images of all epochs, that tells epoch, pace and time left."""
    tasks: dict[str, TaskID] = {}

    def update(cell: str, how: Any) -> None:
        if cell not in tasks:
            tasks[cell] = progress.add_task(cell, total=how.epochs * how.of_images)
        said = f"{cell}: epoch {how.epoch} of {how.epochs}, {how.images_per_s:.0f} images/s, {_left(how.left_s)} left"
        progress.update(tasks[cell], completed=(how.epoch - 1) * how.of_images + how.images, description=said)

    return update


def _left(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
