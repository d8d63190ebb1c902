"""The table of a study: its figures beside the published ones, and notes on what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dqmstream.experiments.studies.recipes import described, recipe
from dqmstream.experiments.studies.study import Study
from dqmstream.lumisection import utf8
from dqmstream.storage.locks import write_atomically

COLUMNS = ("", "test AUC", "test accuracy", "validation AUC", "validation accuracy", "train AUC", "published")


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the table: the mean over all seeds and folds, each of these, the baselines, and the ideal."""
    cells = [cell["figures"] for cell in result["cells"]]
    table = [[result["recipe"], *_mean(cells), recipe(result["recipe"]).published_text]]
    if len(cells) > 1:
        many = len({cell["fold"] for cell in result["cells"]}) > 1
        for cell in result["cells"]:
            name = f"seed {cell['seed']}" + (f", fold {cell['fold']}" if many else "")
            table.append([name, *_mean([cell["figures"]]), ""])
    for name in result["baselines"][0]["figures"]:
        table.append([name, *_mean([one["figures"][name] for one in result["baselines"]]), ""])
    if result["ideal_auc"] is not None:
        table.append(["ideal (exact likelihood, all rows)", _number(result["ideal_auc"]), "", "", "", "", ""])
    return table


def _mean(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Figures averaged over cells, with the average of their intervals, which is that of a single test part."""
    found = []
    for part, what in (
        ("test", "auc"),
        ("test", "accuracy"),
        ("validation", "auc"),
        ("validation", "accuracy"),
        ("train", "auc"),
    ):
        known = [cell[part][what] for cell in cells if part in cell]
        if not known:
            found.append("")
            continue
        text = _number(np.mean([one["estimate"] for one in known]))
        if part != "train" and known[0]["low"] is not None:
            low, high = (np.mean([one[end] for one in known]) for end in ("low", "high"))
            text += f" [{_number(low)}, {_number(high)}]"
        found.append(text)
    return found


def _number(value: float) -> str:
    text = f"{value:.4f}"
    return text.removeprefix("0") if value < 1 else text


def notes(study: Study, result: Mapping[str, Any]) -> list[str]:
    """Notes below the table: recipe, split, what was not stated, and what differs from the recipe."""
    of, cells = study.recipe, result["cells"]
    epochs = ", ".join(f"{cell['best_epoch']} of {len(cell['history'])}" for cell in cells)
    sizes = ", ".join(f"{n} {name}" for name, n in result["rows"].items())
    test = cells[0]["figures"]["test"]
    alike = f", which count as {test['observations']} observations" if test["observations"] < test["n"] else ""
    words = described(of.model_copy(update={"plan": study.plan}))
    lines = [
        f"{of.title} ({of.study}). Published: {of.published_text}.",
        f"Here: {words['network']}; {words['input']}; {words['training']}; {cells[0]['parameters']} weights, "
        f"on {cells[0]['device']}.",
        f"Split: {study.split.describe(of)}; rows: {sizes}{alike}. Best epoch by validation: {epochs}.",
        *(f"Not stated in the publication: {text}." for text in ["; ".join(of.not_stated)] if text),
        *(f"Chosen here: {text}." for text in ["; ".join(of.chosen)] if text),
    ]
    changed = {name: value for name, value in study.plan.model_dump().items() if value != getattr(of.plan, name)}
    if study.settings.size == "tiny":
        lines.append("Size tiny: a small network for a quick look, not that of the study.")
    if changed:
        lines.append("Different from the recipe: " + ", ".join(f"{name} {value}" for name, value in changed.items()) + ".")
    if study.split.limit:
        lines.append(f"Limited to {study.split.limit} rows for a quick look; the published figures are from more.")
    if cells[0]["taken"]:
        lines.append(f"Started from weights: {cells[0]['taken']}.")
    if of.task == "two_runs":
        rings = np.mean([one["figures"]["two ring means"]["test"]["auc"]["estimate"] for one in result["baselines"]])
        lines.append(
            f"Two ring means, which measure luminosity, have a test AUC of {_number(rings)}: a network has to beat that."
        )
    lines += [f"Warning: {result['warning']}"] if result["warning"] else []
    return lines


def title(study: Study) -> str:
    """Recipe and files in one line."""
    files = ", ".join(utf8(path.name) for path in study.paths)
    return f"{study.recipe.name} on {files}: 95 % intervals from the tested rows" + (
        ", averages over seeds and folds" if len(study.settings.seeds) * len(study.folds) > 1 else ""
    )


def write_table(study: Study, result: Mapping[str, Any], out: Path) -> Path:
    """Write table.md in the study's folder and return its path."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *rows(result)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = "\n".join([f"{title(study)}\n", table, "", *(f"- {note}" for note in notes(study, result))]) + "\n"
    path = out / study.recipe.name / "table.md"
    write_atomically(path, text.encode())
    return path
