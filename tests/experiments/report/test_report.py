"""The page says what is on the disk: the killed channel leads, a null stream finds nothing, and no name breaks it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from dqmstream.errors import InputError, StateError
from dqmstream.experiments import simulator
from dqmstream.experiments.page import MANIFEST
from dqmstream.experiments.report import plots
from dqmstream.experiments.report.curves import by_last_curve, course
from dqmstream.experiments.report.further_figures import further_figures
from dqmstream.experiments.report.gain_changes import run_views, view_of
from dqmstream.experiments.report.learner_records import read_records
from dqmstream.experiments.report.report import write_report
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.evaluation.history import baseline_lines, read_history, results
from dqmstream.learners.evaluation.history_line import Watched
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.ledger import read_experience, read_ledger
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import import_files
from tests.experiments.report.page import Page

HOSTILE_SOURCE = """</dd><script>alert("1")</script>'&"""
HOSTILE_NAME = "<img src=x onerror=1> $x_$ {{ 7 * 7 }}"


def make(folder: Path, stream: str, *, seed: int, runs: int, lumisections: int, source: str) -> Path:
    """An archive of a simulated stream and a learner's state, in folder/archive and folder/state."""
    simulator.write(folder / "raw", stream, seed, runs, lumisections)
    import_files(
        [folder / "raw"],
        lambda: Archive.create(folder / "archive", dtype="uint16", source=source),
        dtype=np.dtype("uint16"),
        depths=1,
    )
    learner = Learner(Archive.open(folder / "archive"), folder / "state" / "live", LearnerSettings(strategy="gain_map")).open()
    learner.follow(lambda: False, once=True)
    learner.close()
    return folder


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("faulty"), "moderate", seed=3, runs=3, lumisections=400, source="/ZeroBias#Occupancy")


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("null"), "null", seed=1, runs=3, lumisections=400, source=HOSTILE_SOURCE)
    shutil.copytree(folder / "state" / "live", folder / "state" / HOSTILE_NAME)
    return folder


def write(folder: Path, out: str) -> tuple[Page, dict]:
    page = write_report(Archive.open(folder / "archive"), folder / "state", folder / out)
    return Page(page), json.loads((page.parent / "results.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def found(faulty: Path) -> tuple[Page, dict]:
    return write(faulty, "report")


@pytest.fixture(scope="module")
def nothing(null: Path) -> tuple[Page, dict]:
    return write(null, "report")


def killed(folder: Path) -> dict[int, dict[str, int]]:
    """The channel that died before each run where one did, as the simulator's truth has it."""
    deaths = {}
    for before, after in pairwise(json.loads((folder / "raw" / "truth.json").read_text())["runs"]):
        for channel in after["dead"]:
            if channel not in before["dead"]:
                deaths[after["run"]] = channel
    return deaths


def test_the_killed_channel_leads_the_pulls_of_its_run(faulty: Path, found: tuple[Page, dict]) -> None:
    page, results = found
    deaths = killed(faulty)
    assert len(deaths) == 1
    (run, channel), *_ = deaths.items()
    pulls = {entry["run"]: entry for entry in results["pulls"]}
    first = pulls[run]["largest"][0]
    assert (first["ieta"], first["iphi"], first["depth"]) == (channel["ieta"], channel["iphi"], 1)
    assert first["gain_before"] == pytest.approx(1, abs=0.1)
    assert first["gain_after"] == 0
    assert first["pull"] < -100
    assert pulls[run]["dead"] == 1
    rows = [table[1] for table in page.tables.values() if table[0][0].strip() == "ieta"]
    assert [str(channel["ieta"]), str(channel["iphi"]), "1"] in [[cell.strip() for cell in row[:3]] for row in rows]


def test_the_pulls_are_differences_of_gains_over_their_errors(faulty: Path, found: tuple[Page, dict]) -> None:
    archive = Archive.open(faulty / "archive")
    gains = GainMap(archive.geometry, 0)
    lines = read_ledger(faulty / "state" / "live" / "ledger.jsonl")
    for number, line in enumerate(lines):
        gains.learn(number, read_experience(archive, line), lambda i: read_experience(archive, lines[i]))
    d, error = gains.gains.astype(float), gains.gain_errors.astype(float)
    for k, entry in enumerate(found[1]["pulls"], start=1):
        pull = (d[k] - d[k - 1]) / np.sqrt(error[k] ** 2 + error[k - 1] ** 2)
        shown = [channel["pull"] for channel in entry["largest"]]
        np.testing.assert_allclose(shown, pull[np.argsort(-np.abs(pull))][: len(shown)])
        assert entry["beyond"] == np.sum(np.abs(pull) > 5)
        assert entry["channels"] == 932


def test_the_summary_has_the_numbers_of_results_json(faulty: Path, found: tuple[Page, dict]) -> None:
    page, results = found
    table = [[cell.strip() for cell in row] for row in page.tables["summary-table"][1:]]
    assert [row[0].split()[0] for row in table] == ["live", "gain_map", "naive_bayes", "ring_means"]
    for row, entry in zip(table, results["summary"], strict=True):
        assert row[2] == f"{entry['average_accuracy']:.3f}"
        assert row[3].split()[0] == f"{1 / 3:.3f}"
        assert row[4] == entry["verdict"]
        assert row[5] == f"{entry['accuracy_last_8']:.3f}"
        assert row[6] == f"{entry['average_auc']:.3f}"
        assert row[7] == f"{entry['forgetting']:.3f}"
    live = results["learners"]["live"]
    assert results["summary"][0]["average_accuracy"] == live["average_accuracy"] == np.mean(live["accuracy_matrix"][-1])
    assert results["summary"][0]["accuracy_last_8"] == live["by_last"]["8"]["average_accuracy"] >= live["average_accuracy"]
    assert table[0][9] == f"{live['memory_bytes'] / 1000:.1f}"
    last = read_history(faulty / "state" / "live" / "history.jsonl")[-1]
    for place, name in enumerate(("gain_map", "naive_bayes", "ring_means"), start=1):
        assert table[place][2] == f"{np.mean(last.baselines[name].accuracy):.3f}"


def test_the_curve_by_the_last_lumisections_is_that_of_the_history_and_absent_where_an_older_one_lacks_it(faulty: Path) -> None:
    lines = read_history(faulty / "state" / "live" / "history.jsonl")
    curve = by_last_curve("live", lines).accuracy
    assert {n: value.estimate for n, value in curve.items()} == pytest.approx({
        int(n): found["average_accuracy"] for n, found in results(lines)["by_last"].items()
    })  # fmt: skip
    assert all(value.low <= value.estimate <= value.high for value in curve.values())
    assert not by_last_curve("live", [replace(line, by_last=[]) for line in lines]).accuracy


def test_further_figures_are_those_of_the_history(faulty: Path, found: tuple[Page, dict]) -> None:
    page, results_json = found
    lines = read_history(faulty / "state" / "live" / "history.jsonl")
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in page.tables["measures-table"][1:]}
    assert list(table) == ["live", "gain_map", "naive_bayes", "ring_means"]
    assert [one["name"] for one in results_json["measures"]] == list(table)
    for name, history in {"live": lines, "naive_bayes": baseline_lines(lines, "naive_bayes")}.items():
        own = results(history)
        calibration = own["calibration"]
        shown = [
            own["any_time_accuracy"], own["worst_case_per_experience"], None, own["backward_transfer"], None,
            own["new_run_auc"], calibration["ece"], calibration["ece_calibrated"],
        ]  # fmt: skip
        assert table[name][:8] == ["–" if value is None else f"{value:z.3f}" for value in shown]
        learning = "learn" if name == "live" else f"baseline.{name}"
        # Half a hundredth may be rounded either way.
        assert float(table[name][9]) == pytest.approx(sum(line.seconds[learning] for line in lines), abs=0.0051)
        flops = [line.flops if name == "live" else line.baseline_flops[name] for line in lines]
        assert float(table[name][10]) == pytest.approx(sum(flops) / 1e9, rel=0.01)
    assert float(table["live"][5]) > 0.5 and table["naive_bayes"][5] == "–", "baselines are not asked before learning"


def test_between_naive_and_joint_the_share_of_the_gap_is_told_and_what_was_watched(faulty: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    for name, strategy, newest in (("live", "gain_map", 0.8), ("low", "naive", 0.4), ("high", "joint", 0.9)):
        shutil.copytree(faulty / "state" / "live", state / name)
        identity = json.loads((state / name / "state.json").read_text())
        (state / name / "state.json").write_text(json.dumps(identity | {"strategy": strategy}))
        lines = read_history(state / name / "history.jsonl")
        lines[-1] = replace(lines[-1], accuracy=[newest] * 3, watched=Watched({0: 0.5, 1: 0.1}, 20, 80, 800))
        (state / name / "history.jsonl").write_text("".join(json.dumps(line.to_json()) + "\n" for line in lines))
    found = {one.name: one for one in further_figures(read_records(Archive.open(faulty / "archive"), state))}
    assert found["live"].gap_closed == pytest.approx(0.8)
    assert found["low"].gap_closed == 0 and found["high"].gap_closed == 1
    assert found["live"].worst_case_within_training == pytest.approx(0.8 / 3 + 2 / 3 * 0.3)
    shutil.rmtree(state / "high")
    assert further_figures(read_records(Archive.open(faulty / "archive"), state))[0].gap_closed is None


def test_changes_are_told_from_luminosity(found: tuple[Page, dict]) -> None:
    page, results = found
    verdicts = {row["name"]: row["verdict"] for row in results["summary"]}
    assert verdicts["live"] == verdicts["gain_map"] == "above chance"
    assert verdicts["ring_means"] != "above chance"
    assert "The runs differ" in page.text
    assert "Luminosity alone is at chance" in page.text


def test_a_null_stream_finds_nothing(nothing: tuple[Page, dict]) -> None:
    page, results = nothing
    assert "Nothing found" in page.text
    assert "The runs differ" not in page.text
    for row in results["summary"]:
        assert row["verdict"] == "at chance"
        assert row["chance_low"] <= row["average_accuracy"] <= row["chance_high"]
    for entry in results["pulls"]:
        assert entry["beyond"] == 0
        assert entry["width"] == pytest.approx(1, abs=0.15)


def test_the_words_that_decide_are_explained_with_their_score(found: tuple[Page, dict]) -> None:
    glossary = found[0].text.split("Glossary")[-1]
    for term in ("known", "new", "flagged", "faulty", "failed", "changed"):
        assert re.search(rf"^{term}$|^{term}\w*A ", glossary, re.MULTILINE), term
    for score in ("new-run score", "fault score", "pull", "--alarms", "--rate"):
        assert score in glossary


def test_hostile_names_stay_text(nothing: tuple[Page, dict]) -> None:
    page, results = nothing
    assert results["about"]["source"] == HOSTILE_SOURCE
    assert HOSTILE_SOURCE in page.text
    assert f"Learner {HOSTILE_NAME}" in page.text
    assert "script" not in page.tags
    assert all("onerror" not in picture for picture in page.pictures)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", str(picture["src"])) for picture in page.pictures)


@pytest.mark.parametrize("which", ["found", "nothing"])
def test_every_picture_is_there_and_described(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    page, results = request.getfixturevalue(which)
    folder = request.getfixturevalue({"found": "faulty", "nothing": "null"}[which]) / "report"
    names = [str(picture["src"]) for picture in page.pictures]
    assert sorted(names) == sorted(path.name for path in folder.glob("*.png"))
    learners, runs = len(results["learners"]), len(results["learners"]["live"]["runs"])
    assert len(names) == 1 + 4 * learners + runs + (runs - 1)
    assert len({picture["alt"] for picture in page.pictures}) == len(names)
    for picture in page.pictures:
        assert len(str(picture["alt"])) > 30
        pixels = matplotlib.image.imread(folder / str(picture["src"]))
        assert pixels.shape[1] >= 1.4 * int(str(picture["width"]))
        assert len(np.unique(pixels[::5, ::5, 0])) > 20


def test_the_page_asks_nothing_of_the_network(found: tuple[Page, dict]) -> None:
    page, _ = found
    assert page.source.startswith("<!DOCTYPE html>")
    assert "http" not in page.source
    assert "//" not in page.source.replace("/ZeroBias", "")
    assert not page.tags & {"script", "link", "iframe"}
    assert "url(" not in page.source
    assert "@import" not in page.source
    targets = [link[1:] for link in page.links if link.startswith("#")]
    assert targets
    assert set(targets) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_no_path_of_the_machine_is_told(faulty: Path, found: tuple[Page, dict]) -> None:
    for name in ("index.html", "results.json"):
        assert str(faulty.parent) not in (faulty / "report" / name).read_text()
    assert found[1]["about"]["archive"] == "archive"


def test_a_second_report_replaces_the_first_with_the_same_pictures(faulty: Path, found: tuple[Page, dict]) -> None:
    """In a process of its own, which must get by without torch and avalanche."""
    out = faulty / "second"
    out.mkdir()
    (out / MANIFEST).write_text("run-1-occupancy.png\nindex.html\n../raw/truth.json\n")
    (out / "run-1-occupancy.png").write_text("an older report's")
    code = (
        "import sys; from pathlib import Path\n"
        "from dqmstream.storage.archive import Archive; from dqmstream.experiments.report.report import write_report\n"
        "base = Path(sys.argv[1]); write_report(Archive.open(base / 'archive'), base / 'state', base / 'second')\n"
        "assert not {'torch', 'avalanche'} & set(sys.modules)\n"
        "import matplotlib; assert matplotlib.rcParams['font.size'] == 10.0"
    )
    subprocess.run([sys.executable, "-c", code, str(faulty)], check=True, timeout=240)
    assert {path.name for path in out.iterdir()} == {path.name for path in (faulty / "report").iterdir()}
    assert (faulty / "raw" / "truth.json").exists()
    for path in (faulty / "report").glob("*.png"):
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_a_folder_of_others_is_left_alone(faulty: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"no report wrote \(thesis\.tex\)"):
        write_report(Archive.open(faulty / "archive"), faulty / "state", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder(faulty: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_report(Archive.open(faulty / "archive"), faulty / "state", tmp_path / "out")


def test_without_a_learner_it_says_what_to_do(faulty: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for state in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(StateError, match="dqmstream learn"):
            write_report(Archive.open(faulty / "archive"), state, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_state_of_another_archive_is_refused(faulty: Path, null: Path, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="belongs to archive"):
        write_report(Archive.open(faulty / "archive"), null / "state", tmp_path / "out")


def test_one_run_is_nothing_to_compare(faulty: Path, tmp_path: Path) -> None:
    """The state as it stands while the second run is learnt: its history is written, its scores are not."""
    state = tmp_path / "state" / "live"
    shutil.copytree(faulty / "state" / "live", state)
    shutil.rmtree(state / "scores")
    status = json.loads((state / "status.json").read_text())
    (state / "status.json").write_text(json.dumps(status | {"late_lumisections": {"355400": 17}}))
    page = Page(write_report(Archive.open(faulty / "archive"), tmp_path / "state", tmp_path / "out"))
    assert "Nothing to compare yet" in page.text
    assert "2 more wait to be learnt" in page.text
    assert "17 lumisections of run 355400" in page.text
    assert [row[4].strip() for row in page.tables["summary-table"][1:]] == ["one run"] * 4
    assert len(page.pictures) == 1


def test_scores_that_are_half_written_are_named(faulty: Path, tmp_path: Path) -> None:
    state = tmp_path / "state" / "live"
    shutil.copytree(faulty / "state" / "live", state)
    scores = state / "scores" / "000002.npz"
    scores.write_bytes(scores.read_bytes()[:100])
    with pytest.raises(StateError, match=r"000002\.npz cannot be read"):
        write_report(Archive.open(faulty / "archive"), tmp_path / "state", tmp_path / "out")


def test_of_a_long_stream_the_last_runs_are_shown(
    faulty: Path, found: tuple[Page, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "ANNOTATED_RUNS", 1)
    steps: list[tuple[str, int, int]] = []
    page = Page(
        write_report(
            Archive.open(faulty / "archive"),
            faulty / "state",
            tmp_path,
            shown_runs=1,
            progress=lambda *step: steps.append(step),
        )
    )
    runs = found[1]["learners"]["live"]["runs"]
    assert "the last 1 are shown" in page.text
    assert [picture["src"] for picture in page.pictures if str(picture["src"]).startswith("run-")] == [
        f"run-{runs[-1]}-occupancy.png",
        f"run-{runs[-1]}-changes.png",
    ]
    shown = json.loads((tmp_path / "results.json").read_text())
    assert shown["pulls"] == found[1]["pulls"][-1:]
    assert shown["learners"] == found[1]["learners"]
    assert [done for _, done, _ in steps] == list(range(1, steps[-1][2] + 1))


def test_a_channel_that_wakes_up_is_named(faulty: Path) -> None:
    """The run with the dead channel taken as the reference, and the one before it as the next."""
    archive = Archive.open(faulty / "archive")
    lines = read_ledger(faulty / "state" / "live" / "ledger.jsonl")
    (run, channel), *_ = killed(faulty).items()
    place = [line.run for line in lines].index(run)
    reference, after = run_views(archive, [lines[place], lines[place - 1]], 2)
    assert reference.change is None and reference.awake == []
    assert after.awake == [(channel["ieta"], channel["iphi"], 1)]
    assert after.live.sum() == 931 and after.change is not None and after.change.pull.shape == (931,)
    assert after.per_event and np.nanmax(after.mean) <= 1
    assert np.isnan(reference.mean).sum() == 64 * 72 - 931


def test_empty_lumisections_and_unknown_events_neither_open_the_report_of_a_run_nor_dilute_its_mean(faulty: Path) -> None:
    archive = Archive.open(faulty / "archive")
    lines = read_ledger(faulty / "state" / "live" / "ledger.jsonl")[:1]
    (whole,) = run_views(archive, lines, 1)
    run = read_experience(archive, lines[0])
    counts, events = run.maps.counts.copy(), run.maps.n_events.copy()
    counts[::4], events[::4], events[1] = 0, 0, np.nan
    gaps = replace(run, maps=replace(run.maps, counts=counts, n_events=events))
    strategy = GainMap(archive.geometry, seed=0)
    strategy.learn(0, run, lambda past: run)
    view = view_of(gaps, strategy.reference, None)
    blind = view_of(replace(gaps, maps=replace(gaps.maps, n_events=np.full_like(events, np.nan))), strategy.reference, None)
    assert view.first_lumisection > whole.first_lumisection and view.per_event
    np.testing.assert_allclose(np.nansum(view.mean), np.nansum(whole.mean), rtol=0.02)
    assert np.nansum(view.first) > 0 and not blind.per_event and np.nansum(blind.mean) > 1


def test_the_course_is_what_the_histories_functions_say(faulty: Path) -> None:
    lines = read_history(faulty / "state" / "live" / "history.jsonl")
    rng = np.random.default_rng(0)
    lines = [
        replace(line, accuracy=rng.random(t + 1).tolist() if t else None, by_last=[], baselines={})
        for t, line in enumerate([lines[0], *lines[1:] * 3])
    ]
    drawn = course("x", lines, beside=False)
    step_by_step = [results(lines[: t + 1]) for t in range(len(lines))]
    np.testing.assert_allclose(drawn.accuracy, np.array([one["average_accuracy"] for one in step_by_step], float))
    np.testing.assert_allclose(drawn.forgetting, np.array([one["forgetting"] for one in step_by_step], float))


def test_no_figure_outlives_its_file(found: tuple[Page, dict]) -> None:
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []
    assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]


def test_records_put_the_live_learner_first(null: Path) -> None:
    names = [record.name for record in read_records(Archive.open(null / "archive"), null / "state")]
    assert names == ["live", HOSTILE_NAME]
