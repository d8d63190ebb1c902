"""The earlier studies on a user's own files: `dqmstream benchmark --recipe NAME --data PATH`, and simulated images for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TaskID

from dqmstream.cli import options, output
from dqmstream.errors import InputError
from dqmstream.settings import MAX_COUNT, recipe_flags

if TYPE_CHECKING:
    from dqmstream.experiments.studies.training.trainer import EpochProgress

PANEL = "An earlier study on your own files (with --data)"


@dataclass(frozen=True)
class StudyOptions:
    """What a user may ask of a study."""

    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="HDF5, Parquet or Run*_Dataset_*.npy file, a folder of them, or an image archive; needs --recipe NAME; repeatable", rich_help_panel=PANEL),  # noqa: E501
    ] = None  # fmt: skip
    epochs: Annotated[
        int, typer.Option(min=0, max=MAX_COUNT, help="number of epochs (default: that of the recipe)", rich_help_panel=PANEL)
    ] = 0
    limit: Annotated[
        int,
        typer.Option(
            min=0, max=MAX_COUNT, help="largest number of rows, for a quick look (default: 0, all)", rich_help_panel=PANEL
        ),
    ] = 0
    size: Annotated[str, typer.Option(help="size of the network: study, or tiny for a quick look", rich_help_panel=PANEL)] = (
        "study"
    )
    folds: Annotated[
        int,
        typer.Option(min=0, max=1000, help="number of folds of a K-fold (default: that of the recipe)", rich_help_panel=PANEL),
    ] = 0
    augment: Annotated[
        list[str] | None,
        typer.Option(help="flip, rotate or shift of images; repeatable", rich_help_panel=PANEL),
    ] = None
    weights: Annotated[Path | None, typer.Option(help="safetensors file of initial weights", rich_help_panel=PANEL)] = None
    device: options.Device = None
    list_: Annotated[bool, typer.Option("--list", help="list the studies' recipes and exit", rich_help_panel=PANEL)] = False

    @property
    def beyond_data(self) -> bool:
        """Whether any option is given that needs data."""
        return self != StudyOptions(data=self.data, list_=self.list_)


IMAGES = "Images instead of runs"
Layout = Annotated[str | None, typer.Option("--layout", help="layout of a study's files: electron_photon or quark_gluon", rich_help_panel=IMAGES)]  # fmt: skip # noqa: E501
Images = Annotated[int, typer.Option("--images", max=MAX_COUNT, help="number of images in all files", rich_help_panel=IMAGES)]
Contrast = Annotated[float, typer.Option("--contrast", max=100, callback=options.finite, help="difference between the classes, 0 for none", rich_help_panel=IMAGES)]  # fmt: skip # noqa: E501


def simulate(out: Path, layout: str, images: int, seed: int, contrast: float, as_json: bool) -> None:
    """Write simulated images, whose ideal AUC is known."""
    from dqmstream.experiments.simulator.images import ideal_of, write_images

    with output.bars() as progress:
        paths = write_images(out, layout, images, seed, contrast, output.bar_callback(progress, f"simulate {layout}"))
    ideal = ideal_of([out])
    result = {"out": str(out), "layout": layout, "seed": seed, "files": [path.name for path in paths], "ideal_auc": ideal}
    options.show(result, as_json, f"{len(paths)} files in {out}; the exact likelihood has AUC {output.number(ideal)}")


def list_studies(as_json: bool) -> None:
    """Print every recipe with the published figures."""
    from dqmstream.experiments.studies.recipes import TASK_NAMES, described, recipes

    listed = [
        {"name": one.name, "task": TASK_NAMES[one.task], "study": one.study, "published": one.published_text, **described(one)}
        for one in recipes().values()
    ]
    columns = ["name", "task", "study", "network", "published"]
    table = output.table("studies", columns, [[one[column] for column in columns] for one in listed])
    options.show({"studies": listed}, as_json, table, "details, and what the publications do not state: docs/studies.md")


def refuse_without_data(study: StudyOptions, recipe: Path | None) -> None:
    """Raise InputError where a study, or an option of one, is named without data."""
    from dqmstream.experiments.studies.recipes import recipes

    if recipe is not None and str(recipe) in recipes() and not recipe.exists():
        raise InputError(f"{recipe} is the recipe of a study: give the data files with --data")
    if study.beyond_data:
        raise InputError(
            "--epochs, --limit, --size, --folds, --augment, --weights and --device belong to a study: give --data and --recipe"
        )


def refuse_streams(*given: Any) -> None:
    """Raise InputError where options of simulated streams are given beside data."""
    if any(given):
        raise InputError("--data trains a study: leave out --quick, --stream, --strategy, --table and --dask, or --data")


def run(
    study: StudyOptions, recipe: Path | None, more: Sequence[Path], changes: Mapping[str, Any], out: Path, as_json: bool
) -> None:
    """Train a study's recipe on the user's files and print its table.

    more: further data files. changes: "set_" to the recipe, "seeds" and "split", each None if not given.
    """
    from dqmstream.experiments.studies.run import run_study
    from dqmstream.experiments.studies.study import StudySettings, prepare
    from dqmstream.experiments.studies.study_table import COLUMNS, notes, rows, title, write_table

    if recipe is None:
        raise InputError("--data needs the recipe of a study: --recipe NAME; --list lists them")
    settings = StudySettings(
        seeds=tuple(changes["seeds"] or (0,)),
        epochs=study.epochs,
        limit=study.limit,
        size=study.size,
        folds=study.folds,
        split=changes["split"] or "blocks",
        augment=tuple(study.augment or ()),
        weights=study.weights,
        device=study.device or "auto",
        changes=recipe_flags(None, changes["set_"]) or {},
    )
    prepared = prepare(str(recipe), [*(study.data or ()), *more], settings)
    with output.bars() as bars:
        result = run_study(prepared, out, _bar(bars))
    path = write_table(prepared, result, out)
    table = output.table(title(prepared), list(COLUMNS), rows(result))
    files = f"table, results and weights: {path.parent}"
    options.show(result | {"table": str(path)}, as_json, table, *notes(prepared, result), files)


def _bar(bars: Progress) -> Callable[[str, EpochProgress], None]:
    """A bar per training, in images of all epochs, with epoch, rate and time left."""
    tasks: dict[str, TaskID] = {}

    def update(cell: str, epoch: EpochProgress) -> None:
        if cell not in tasks:
            tasks[cell] = bars.add_task(cell, total=epoch.epochs * epoch.of_images)
        text = f"{cell}: epoch {epoch.epoch} of {epoch.epochs}, {epoch.images_per_s:.0f} images/s, {_time(epoch.left_s)} left"
        bars.update(tasks[cell], completed=(epoch.epoch - 1) * epoch.of_images + epoch.images, description=text)

    return update


def _time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
