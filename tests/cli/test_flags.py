"""`dqmstream flags` through the real command line: beside a learner that holds its state, and where nothing can be read."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqmstream.experiments.simulator import draw_counts, write
from dqmstream.experiments.simulator.stretches import rate_per_pileup, stretch
from dqmstream.learners.splits import Part, assign
from dqmstream.learners.stream.flags import Flagger
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.ledger import describe
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import import_files
from tests.commandline import dqmstream, result, told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archive A of 4 runs of `moderate` and a learner of the first three; in the last run a channel is dead as well."""
    made = tmp_path_factory.mktemp("flags")
    write(made / "runs", "moderate", 2, 4, 200)
    last = sorted((made / "runs").glob("*_Dataset_*"))[-1]
    counts = np.load(last)
    counts[:, 8, 20] = 0  # ieta -24, iphi 21
    np.save(last, counts)
    import_files([made / "runs"], lambda: Archive.open_or_create(made / "A"), dtype=np.dtype("float32"), depths=1)
    archive = Archive.open(made / "A")
    learner = Learner(archive, made / "A.state" / "live", LearnerSettings(strategy="statistical")).open()
    for number, run in enumerate([one.run for one in archive.runs()][:3]):
        learner.freeze([describe(archive, run, number)])
        learner.step()
    learner.close()
    return made


def _kept(folder: Path) -> dict[Path, bytes]:
    """All files of a state but the heartbeat of the learner that runs."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "heartbeat"}


def test_a_run_that_is_not_known_is_flagged_and_its_channels_named_beside_a_learner_that_runs(
    folder: Path, tmp_path: Path
) -> None:
    archive = Archive.open(folder / "A")
    before = _kept(folder / "A.state")
    running = Learner(archive, folder / "A.state" / "live", LearnerSettings(strategy="statistical")).open()
    try:
        done: dict[str, Any] = result("flags", "--archive", folder / "A", "--out", tmp_path / "flags.csv")
    finally:
        running.close()
    after = _kept(folder / "A.state")
    assert after == before
    *known, new = done["runs"]
    assert [one["run"] for one in known] == done["learnt"] and not new["learnt"]
    for one in known:
        assert one["most_probable"] == one["run"] == one["against"] and one["probability"] > 0.9
        assert one["flagged"] < 0.1 * one["lumisections"]
    assert new["flagged"] > 0.8 * new["lumisections"]
    dead = next(c for c in new["channels"] if (c["ieta"], c["iphi"], c["depth"]) == (-24, 21, 1))
    assert dead["pull"] < -10 and dead["seen"] == 0 and dead["expected"] > 100
    rows = list(csv.DictReader((tmp_path / "flags.csv").open()))
    assert len(rows) == 800
    assert [row["lumisection"] for row in rows[:3]] == ["1", "2", "3"]
    assert rows[0]["run_1"] == str(known[0]["run"]) and float(rows[0]["probability_1"]) > 0.5
    assert [row["summed"] for row in rows[:9]] == ["1", "2", "3", "4", "5", "6", "7", "8", "8"]
    assert rows[10]["run_by_last"] == str(known[0]["run"]) and float(rows[10]["probability_by_last"]) > 0.9
    assert [one["by_last"]["lumisections"] for one in known] == [8] * 3
    assert [one["by_last"]["most_probable"] for one in known] == [one["run"] for one in known]
    assert rows[-1]["flagged"] == "1" and "-24/21/1:" in rows[-1]["channels"]


def test_the_table_names_runs_and_channels(folder: Path) -> None:
    last = Archive.open(folder / "A").runs()[-1].run
    done = dqmstream("flags", "--archive", folder / "A", "--run", last, "--alarms", 0.001)
    assert done.returncode == 0, done.stderr
    for words in ("false alarms at 0.001 (not calibrated: flagged, faulty)", "-24, 21, 1", f"run {last} against"):
        assert words in done.stdout


def test_flags_agree_with_the_learner_on_what_it_learnt(folder: Path) -> None:
    archive = Archive.open(folder / "A")
    found = Flagger(archive, folder / "A.state" / "live").flags(archive.runs()[0].run, 0.01, 0.05)
    test = assign(found.lumisection) == Part.TEST
    assert np.mean(found.top[test, 0] == archive.runs()[0].run) > 0.9
    assert (np.diff(found.probability, axis=1) <= 0).all()
    assert np.mean(found.top_by_last[test] == archive.runs()[0].run) >= np.mean(found.top[test, 0] == archive.runs()[0].run)
    np.testing.assert_array_equal(found.flagged, found.p <= 0.01)
    assert found.summary()["calibrated"] == {"new_run": False, "fault": False}, "three runs are too few"
    np.testing.assert_allclose(found.p, np.exp(-np.maximum(found.score, 0)))
    assert {(row["calibrated"], row["fault_calibrated"]) for row in found.rows()} == {(0, 0)}


def test_one_lumisection_by_itself_is_the_last_one_and_an_older_checkpoint_has_no_temper(folder: Path, tmp_path: Path) -> None:
    archive, state = Archive.open(folder / "A"), tmp_path / "live"
    run = archive.runs()[0].run
    shutil.copytree(folder / "A.state" / "live", state)
    (meta,) = (state / "checkpoints").glob("000002/checkpoint.json")
    stored = json.loads(meta.read_text())
    assert stored["temperature"] is not None and 0 <= stored["correlation"] <= 1
    plain, sure = Flagger(archive, state).flags(run, 0.01, 0.05, last=1), {}
    np.testing.assert_array_equal(plain.top_by_last, plain.top[:, 0])
    for name, entries in (
        ("correlated", {**stored, "temperature": 40.0, "correlation": 1.0}),
        ("independent", {**stored, "temperature": 0.1, "correlation": 0.0}),
        ("older", {name: value for name, value in stored.items() if name not in ("temperature", "correlation")}),
    ):
        meta.write_text(json.dumps(entries))
        sure[name] = Flagger(archive, state).flags(run, 0.01, 0.05).probability_by_last
    assert sure["correlated"].mean() < 0.99 < sure["independent"].mean()
    np.testing.assert_array_equal(sure["older"], sure["independent"], "no surer than the sum itself")


def test_what_cannot_be_flagged_is_refused(folder: Path, tmp_path: Path) -> None:
    archive = ["--archive", folder / "A"]
    assert "holds no checkpoint" in told(dqmstream("flags", *archive, "--state", tmp_path / "none"), 7)
    assert "ends with .csv" in told(dqmstream("flags", *archive, "--out", tmp_path / "flags.parquet"), 3)
    assert "999" in told(dqmstream("flags", *archive, "--run", 999), 5)
    state = tmp_path / "damaged"
    shutil.copytree(folder / "A.state", state)
    arrays = sorted((state / "live" / "checkpoints").iterdir())[-1] / "arrays.safetensors"
    whole = bytearray(arrays.read_bytes())
    whole[-1] ^= 1
    arrays.write_bytes(whole)
    assert "damaged" in told(dqmstream("flags", *archive, "--state", state), 7)
    import_files([folder / "runs"], lambda: Archive.open_or_create(tmp_path / "B"), dtype=np.dtype("float32"), depths=1)
    told(dqmstream("flags", "--archive", tmp_path / "B", "--state", folder / "A.state"), 7)


def test_a_channel_that_fails_within_a_run_is_named_with_its_lumisections(folder: Path, tmp_path: Path) -> None:
    """In the run after those that are known two channels fail at lumisection 101."""
    shutil.copytree(folder, tmp_path / "copy")
    place, state = tmp_path / "copy" / "A", tmp_path / "copy" / "A.state" / "live"
    last = Archive.open(place).runs()[-1].run
    before = Flagger(Archive.open(place), state).flags(last, 0.01, 0.05)
    assert (-24, 21, 1) in before.places  # dead from the start
    whole = next((folder / "runs").glob(f"Run{last}_Dataset_*"))
    counts = np.load(whole)
    counts[100:, 9, 30], counts[100:, 55, 40] = 0, np.rint(0.3 * counts[100:, 55, 40])
    np.save(tmp_path / whole.name, counts)
    import_files([tmp_path / whole.name], lambda: Archive.open(place), dtype=np.dtype("float32"), depths=1)
    found = Flagger(Archive.open(place), state).flags(last, 0.01, 0.05)
    told = {(row["ieta"], row["iphi"], row["depth"]): row for row in found.faults()}
    for channel in ((-23, 31, 1), (24, 41, 1)):
        assert channel not in before.places
        assert (told[channel]["first"], told[channel]["last"]) == (101, 200)
    assert found.faulty[100:].all()
    assert found.rows()[150]["faulty_channels"].count("/") >= 6


def test_a_reference_that_does_not_follow_the_law_is_told(folder: Path, tmp_path: Path) -> None:
    """Counts that lie eight times as far from their mean as counts do follow no law of events that fire."""
    first = Archive.open(folder / "A").runs()[0].run
    told = result("flags", "--archive", folder / "A", "--run", first)["warnings"]
    assert len(told) == 2 and all("is not calibrated" in warning for warning in told)
    shutil.copytree(folder / "A", tmp_path / "A")
    counts = np.load(min((folder / "runs").glob("*_Dataset_*")))
    noise = 7 * np.sqrt(counts) * np.random.default_rng(0).standard_normal(counts.shape)
    np.save(tmp_path / "Run1_Dataset_noisy.npy", np.maximum(np.rint(counts + noise), 0))
    result("import", tmp_path / "Run1_Dataset_noisy.npy", "--archive", tmp_path / "A")
    result("reference", "--archive", tmp_path / "A", "--run", 1, "--out", tmp_path / "noisy.safetensors")
    result("learn", "--archive", tmp_path / "A", "--strategy", "gain_map", "--reference", tmp_path / "noisy.safetensors")
    done = dqmstream("flags", "--archive", tmp_path / "A")
    assert done.returncode == 0 and "warning: the reference run does not follow the law" in done.stdout


def test_a_run_at_another_pileup_than_a_level_first_run_is_marked_and_nothing_is_found_in_it(tmp_path: Path) -> None:
    for run, kind in ((1, "level"), (2, "fall")):
        rng = np.random.default_rng(run)
        given = stretch(kind, 200, rng, events=1100, empty=3)
        np.save(tmp_path / f"Run{run}_Dataset_x.npy", draw_counts(rate_per_pileup(0), given.events, given.pileup, rng))
    result("import", tmp_path / "Run1_Dataset_x.npy", "--archive", tmp_path / "A")
    result("learn", "--archive", tmp_path / "A", "--strategy", "gain_map")
    result("import", tmp_path / "Run2_Dataset_x.npy", "--archive", tmp_path / "A")
    out = tmp_path / "flags.csv"
    done = result("flags", "--archive", tmp_path / "A", "--out", out)
    level, falling = done["runs"]
    assert (level["blank"], falling["blank"], level["beyond"]) == (3, 3, 0)
    assert falling["beyond"] > 150
    assert falling["flagged"] == falling["faulty"] == 0 and falling["channels"] == []
    assert any("1.00 to 1.00 times those of its first run" in warning for warning in done["warnings"])
    rows = list(csv.DictReader(out.open()))
    assert sum(int(row["beyond"]) for row in rows) == falling["beyond"]
    assert all(row["run_1"] == "" for row in rows if row["blank"] == "1")
