"""README: runs under real conditions go from import to report without a wrong statement.

Short runs, levelled pileup, empty and truncated lumisections; a readout box and channels that do fail. The runs are drawn from
the stream `campaign-null` under conditions that are laid down here.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqmstream.experiments.simulator import probability
from dqmstream.experiments.simulator.depths import all_depths
from dqmstream.experiments.simulator.fills import fall, levelled, ramp
from dqmstream.experiments.simulator.runs import checked, draw_runs
from dqmstream.experiments.simulator.tables import read_conditions
from dqmstream.lumisection import ieta_row, rbx_mask
from dqmstream.storage.archive import Archive
from dqmstream.streaming.kafka import KafkaSender, create_topic
from dqmstream.streaming.publisher import publish
from tests.commandline import dqmstream
from tests.promises.test_exactly_once import assert_equals
from tests.scale import scaled

DEPTHS = scaled(1, 7)
NOISE = re.compile(r"[a-z]Warning\b|Traceback|\b[nN]a[nN]\b|\b[iI]nf(inity)?\b")
"""What no output may contain: warnings of a library, and NaN."""
BOX = {(ieta, iphi) for ieta in range(1, 33) for iphi in range(15, 19)}
"""Channels of RBX +5, at .8 in the last two runs."""


SEED = 0
EMPTY = {380100: [1, 2], 380105: [51], 380115: [9, 150], 380120: [17], 380125: [51]}
TRUNCATED = {380105: [88, 140], 380110: [20], 380115: [33]}
FAULTY = (380120, 380125)
"""Runs with the box at .8 and channel -22/31 of depth 1 dead; in the second, +24/11 dies at lumisection 101."""


def pileups() -> dict[int, np.ndarray]:
    """Pileup of seven runs of two fills: a ramp, a level run, a short one, falling ones, and one that is too short."""
    rng = np.random.default_rng(SEED)
    return {
        380100: ramp(61.7, rng)[0][:60],
        380105: levelled(61.7, 200, rng),
        380110: levelled(61.7, 20, rng),
        380115: np.concatenate([levelled(61.7, 80, rng), fall(61.7, 42.0, 120, rng)]),
        380120: fall(61.7, 36.0, 200, rng),
        380125: np.concatenate([levelled(61.7, 100, rng), fall(61.7, 42.0, 100, rng)]),
        380130: levelled(61.7, 10, rng),
    }


def table() -> dict[str, list[float]]:
    """Conditions of the runs as OMS writes them."""
    rng = np.random.default_rng(SEED)
    columns: dict[str, list[float]] = {"run_number": [], "lumisection_number": [], "pileup": []}
    delivered: list[float] = []
    recorded: list[float] = []
    for run, pileup in pileups().items():
        live = 0.985 - 0.01 * rng.random(len(pileup))
        live[np.array(TRUNCATED.get(run, []), int) - 1] = rng.uniform(0.1, 0.5, len(TRUNCATED.get(run, [])))
        live[np.array(EMPTY.get(run, []), int) - 1] = 0.0
        columns["run_number"] += [run] * len(pileup)
        columns["lumisection_number"] += list(range(1, len(pileup) + 1))
        columns["pileup"] += pileup.tolist()
        delivered += [0.4] * len(pileup)
        recorded += (0.4 * live).tolist()
    return {**columns, "delivered_lumi_per_lumisection": delivered, "recorded_lumi_per_lumisection": recorded}


def write_runs(out: Path) -> None:
    """Draw the runs, those of FAULTY with another gain, and write files that `import` reads."""
    (out / "oms.json").write_text(json.dumps(table()))
    given = read_conditions([out / "oms.json"])
    named, numbers = checked("campaign-null", SEED, None, None, given=given)
    he = draw_runs(named, SEED, numbers, None, given)
    for run in he if DEPTHS == 1 else all_depths(he, named, SEED, numbers):
        counts = run.counts.reshape(len(run.events), DEPTHS, 64, 72)
        if run.run in FAULTY:
            counts = redrawn(run.rate.reshape(DEPTHS, 64, 72), run.events, run.pileup, np.random.default_rng(run.run))
        if run.run == FAULTY[1]:
            counts[100:, 0, ieta_row(24), 10] = 0
        np.save(out / f"Run{run.run}_Dataset_ZeroBias.npy", counts if DEPTHS > 1 else counts[:, 0])
        np.save(out / f"Run{run.run}_events.npy", run.events)
        np.save(out / f"Run{run.run}_pileup.npy", run.pileup)


def redrawn(rate: np.ndarray, events: np.ndarray, pileup: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Counts of these rates with the faults, (n, depths, 64, 72)."""
    rate = np.where(rbx_mask(1, 5), 0.8 * rate, rate)
    rate[0, ieta_row(-22), 30] = 0.0
    counts = np.zeros((len(events), *rate.shape), np.uint16)
    counts[:, rate > 0] = rng.binomial(events.astype(int)[:, None], probability(rate[rate > 0], pileup[:, None]))
    return counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the runs, imported into archive A."""
    made = tmp_path_factory.mktemp("campaign")
    (made / "files").mkdir()
    write_runs(made / "files")
    (made / "files" / "oms.json").unlink()
    quiet("import", made / "files", "--archive", made / "A", "--depths", DEPTHS)
    return made


@pytest.fixture(scope="module")
def flags(folder: Path) -> dict[str, Any]:
    """The flags of each run, by run, after all were learnt."""
    learnt = quiet("learn", "--archive", folder / "A", "--strategy", "statistical")
    assert learnt["runs"] == [380105, 380110, 380115, 380120, 380125]
    told = quiet("flags", "--archive", folder / "A", "--out", folder / "flags.csv")
    return {one["run"]: one for one in told["runs"]}


def quiet(*arguments: object) -> dict[str, Any]:
    """The result of a command, whose output has none of NOISE."""
    done = dqmstream(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert not NOISE.search(done.stdout + done.stderr), done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def channels(found: list[dict[str, Any]]) -> set[tuple[int, int]]:
    return {(one["ieta"], one["iphi"]) for one in found if one["depth"] == 1}


@pytest.mark.kafka
def test_every_lumisection_of_such_runs_is_filed_once(folder: Path, bootstrap: str, topic: str, tmp_path: Path) -> None:
    """Import, publish, and consume again: the same maps, empty ones too."""
    source = Archive.open(folder / "A")
    assert {one.run: one.rows for one in source.runs()} == {run: len(pileup) for run, pileup in pileups().items()}
    create_topic(bootstrap, topic, 2)
    with closing(KafkaSender(bootstrap, topic)) as sender:
        publish(source, sender, [one.run for one in source.runs()])
    flags = ("--bootstrap", bootstrap, "--topic", topic, "--archive", tmp_path / "B", "--depths", DEPTHS)
    consumed = quiet("consume", *flags, "--no-learn", "--until-idle", 1)
    assert (consumed["dead"], consumed["gaps"], consumed["waiting"]) == (0, 0, 0)
    assert_equals(Archive.open(tmp_path / "B"), source)


def test_runs_that_are_too_short_are_left_out_and_the_others_learnt(folder: Path, flags: dict[str, Any]) -> None:
    """The first run is a ramp of 60 lumisections, which does not show the law of the response; the last has 10."""
    status = quiet("status", "--archive", folder / "A")
    assert not NOISE.search(str(status)), status
    assert [run for run, one in flags.items() if not one["learnt"]] == [380100, 380130]


def test_flags_name_the_box_and_the_channels_that_fail_and_no_others(folder: Path, flags: dict[str, Any]) -> None:
    """Two good runs at levelled and falling pileup, then a box at .8 and a dead channel, then one that dies at 101."""
    for run in (380100, 380105, 380110, 380115, 380130):
        assert flags[run]["channels"] == []
        assert max(flags[run]["flagged"], flags[run]["faulty"]) <= max(0.02 * flags[run]["lumisections"], 1)
    failed = channels(flags[380125]["faults"])
    assert (24, 11) in failed and failed - {(24, 11), (-22, 31)} <= BOX
    rows = list(csv.DictReader((folder / "flags.csv").open()))
    named = Counter(row["lumisection"] for row in rows if row["run"] == "380125" and "24/11/1" in row["faulty_channels"])
    assert set(named) == {str(number) for number in range(101, 201)}
    assert not any(row["faulty"] == "1" or row["faulty_channels"] for row in rows if row["blank"] == "1")
    assert not NOISE.search((folder / "flags.csv").read_text())


def test_compare_names_what_changed_and_nothing_else(folder: Path) -> None:
    def pair(*runs: int) -> list[Path]:
        return [folder / "files" / f"Run{run}_Dataset_ZeroBias.npy" for run in runs]

    same = quiet("compare", *pair(380105, 380115))
    assert same["changed"] == [] and same["boxes"] == []
    apart = quiet("compare", *pair(380115, 380120))
    changed = channels(apart["changed"])
    assert (-22, 31) in changed and len(changed - {(-22, 31)} - BOX) <= 2 * apart["rate"] * len(changed)
    assert [one["rbx"] for one in apart["boxes"]] == [5]
    short = dqmstream("compare", *pair(380110, 380105))
    assert short.returncode == 0 and "No channel is found to have changed" in short.stdout
    if DEPTHS == 1:  # most channels of HE are full
        assert "could not be tested" in short.stdout and "There is no AUC" in short.stdout
    assert not NOISE.search(short.stdout + short.stderr)


def test_the_report_of_such_runs_is_whole(folder: Path, flags: dict[str, Any], tmp_path: Path) -> None:
    quiet("report", "--archive", folder / "A", "--out", tmp_path / "report")
    text = re.sub(r"<style.*?</style>|data:[^\"]*", "", next((tmp_path / "report").glob("*.html")).read_text(), flags=re.DOTALL)
    assert not NOISE.search(text)
    assert all(str(run) in text for run in flags if flags[run]["learnt"])
