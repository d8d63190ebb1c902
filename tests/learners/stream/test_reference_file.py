"""A reference of chosen runs is a file with a version, to which the state of every learner that uses it belongs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dqmstream.errors import InputError, StateError
from dqmstream.learners.checks import check_learns_and_scores, check_resumes_to_the_same_bits
from dqmstream.learners.closed_form.gain_map import GainMap
from dqmstream.learners.maps import joined
from dqmstream.learners.registry import make_strategy
from dqmstream.learners.response.reference import Reference
from dqmstream.learners.splits import Part
from dqmstream.learners.strategy import Strategy
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.stream.reference_file import load_reference, make_reference, read_channels, save_reference
from dqmstream.lumisection import Geometry, ieta_row
from dqmstream.service.learner_process import settings_of_child
from dqmstream.settings import as_json, from_json, load_settings
from dqmstream.storage.archive import Archive
from tests.commandline import dqmstream, result, told
from tests.learners.streams import make_stream
from tests.learners.test_strategies import BRIEF
from tests.runs import simulated_archive

ONE = Geometry(1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("reference"), "small", seed=1, runs=3, lumisections=200)


def _runs(archive: Archive) -> list[int]:
    return [summary.run for summary in archive.runs()]


def test_a_file_gives_the_same_bits_back_and_says_what_it_is_of(archive: Archive, tmp_path: Path) -> None:
    first, second, _ = _runs(archive)
    made, about = make_reference(archive, [second, first, second], [(1, -20, 3)])
    path = tmp_path / "ours.safetensors"
    save_reference(path, made, about)
    found, said = load_reference(path, ONE)
    assert said.version == about.version == made.version == found.version
    assert (said.runs, said.snapshot, said.archive_id) == ([second, first], archive.snapshot, archive.archive_id)
    assert [tuple(channel) for channel in said.masked] == [(1, -20, 3)] and not made.live[0, ieta_row(-20), 2]
    counts = archive.run(first)["occupancy"].values
    np.testing.assert_array_equal(found.residuals(counts), made.residuals(counts))
    assert make_reference(archive, [first])[1].version != about.version


def test_a_name_that_hides_what_the_file_is_is_refused(archive: Archive, tmp_path: Path) -> None:
    made, about = make_reference(archive, _runs(archive)[:1])
    with pytest.raises(InputError, match=r"name it .*x\.safetensors, not .*x\.txt"):
        save_reference(tmp_path / "x.txt", made, about)
    assert not list(tmp_path.iterdir())


def test_channels_that_are_dead_in_one_of_the_runs_are_left_out_and_named(tmp_path: Path) -> None:
    archive = simulated_archive(tmp_path, "moderate", seed=3, runs=3)
    runs = _runs(archive)
    counted = np.array([(archive.run(run)["occupancy"].values > 0).any(axis=0) for run in runs])
    half_dead = counted.any(axis=0) & ~counted.all(axis=0)
    assert half_dead.any()
    made, about = make_reference(archive, runs)
    named = {(depth - 1, ieta_row(ieta), iphi - 1) for depth, ieta, iphi in about.dead}
    assert named == {tuple(map(int, cell)) for cell in np.argwhere(half_dead)}
    assert made.channels == 932 - len(named) and not made.live[half_dead].any()


def test_two_runs_know_the_channels_better_than_one() -> None:
    """The gains of a third run of the same detector scatter by their errors, which include those of the reference."""
    stream = make_stream(3, drift=0.0, seed=4, n=400)
    errors = []
    for runs in (stream[:1], stream[:2]):
        strategy = GainMap(ONE, 0)
        strategy.set_reference(Reference.fit(joined([run.part(Part.TRAIN) for run in runs])))
        strategy.learn(0, stream[2], lambda i: stream[i])
        errors.append(float(strategy.gains[0].std()))
    assert errors[1] < 0.95 * errors[0]


@pytest.mark.parametrize("name", ["gain_map", "statistical", "hybrid"])
def test_a_strategy_that_looks_through_a_given_reference_keeps_the_contract(name: str) -> None:
    given, *stream = make_stream(4, drift=0.03, seed=2)
    reference = Reference.fit(given.part(Part.TRAIN))

    def make(seed: int) -> Strategy:
        recipe = replace(BRIEF, steps=2)
        strategy = make_strategy(name, geometry=ONE, seed=seed, recipe=recipe, device="cpu")
        strategy.set_reference(reference)
        return strategy

    check_learns_and_scores(make(0), stream, None)
    check_resumes_to_the_same_bits(make, stream)
    learnt = make(0)
    learnt.learn(0, stream[0], lambda i: stream[i])
    with pytest.raises(StateError, match="reference"):
        make_strategy(name, geometry=ONE, seed=0, recipe=replace(BRIEF, steps=2), device="cpu").restore(learnt.state())


def test_a_learner_is_of_its_reference(archive: Archive, tmp_path: Path) -> None:
    first, _, last = _runs(archive)
    path, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    for file, run in ((path, first), (other, last)):
        save_reference(file, *make_reference(archive, [run]))
    settings = LearnerSettings("gain_map", reference=other)
    learner = Learner(archive, tmp_path / "state", settings).open()
    learner.follow(lambda: False, once=True)
    learner.close()
    assert isinstance(learner.strategy, GainMap)
    gains = np.abs(learner.strategy.gains).mean(axis=1)
    assert gains[0] > 2 * gains[2], "the last run is what the others are measured against"
    status = json.loads((tmp_path / "state" / "status.json").read_text())
    assert (status["reference"], status["reference_runs"]) == (load_reference(other, ONE)[1].version, [last])
    Learner(archive, tmp_path / "state", settings).open().close()
    for wrong in (replace(settings, reference=path), replace(settings, reference=None)):
        with pytest.raises(StateError, match="belongs to a learner with reference"):
            Learner(archive, tmp_path / "state", wrong).open()


def test_the_command_line_makes_one_and_hands_it_on(archive: Archive, tmp_path: Path) -> None:
    run = _runs(archive)[1]
    mask, out = tmp_path / "bad.txt", tmp_path / "ours.safetensors"
    mask.write_text("# depth ieta iphi\n1, 19, 5  # noisy\n\n1 -29 71\n")
    made = result("reference", "--archive", archive.path, "--run", run, "--mask", mask, "--out", out)
    assert made["runs"] == [run] and made["masked"] == [[1, -29, 71], [1, 19, 5]]
    state = tmp_path / "state"
    common = ("--archive", archive.path, "--state", state)
    result("replay", *common, "--strategy", "gain_map", "--reference", out)
    stored = json.loads((state / "replay-gain_map-0" / "state.json").read_text())
    assert stored["reference"] == made["version"]
    page = tmp_path / "report"
    result("report", "--archive", archive.path, "--state", state, "--out", page)
    assert f"Maps are taken relative to reference {made['version']}." in (page / "index.html").read_text()
    child = settings_of_child(archive, state, load_settings(reference=out), 1.0)
    assert from_json(as_json(child)).reference == out
    for words, says in (
        (["--run", 9], "9"),
        ([], "needs a run"),
        (["--run", run, "--mask", out], "is no text"),
    ):
        done = dqmstream("reference", "--archive", archive.path, "--out", tmp_path / "no", *words)
        assert says in told(done, done.returncode)
    assert not (tmp_path / "no").exists()


def test_what_is_no_reference_of_these_maps_is_refused(archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    made, about = make_reference(archive, _runs(archive)[:1])
    save_reference(path, made, replace(about, version="0" * 16))
    with pytest.raises(InputError, match=f"damaged.* {made.version}"):
        load_reference(path, ONE)
    save_reference(path, made, about)
    with pytest.raises(InputError, match="of maps of shape"):
        load_reference(path, Geometry(2))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as a reference"):
        load_reference(path, ONE)
    save_file({"live": np.zeros(3)}, path)
    with pytest.raises(InputError, match="is no reference"):
        load_reference(path, ONE)


@pytest.mark.parametrize(
    ("text", "says"), [("1 2\n", "line 1: give depth"), ("1 x 3\n", "line 1"), ("1 5 5\n2 0 1\n", "ieta 0")]
)
def test_channels_that_no_map_has_are_refused(text: str, says: str, archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        make_reference(archive, _runs(archive)[:1], read_channels(path))


def test_a_run_that_is_too_short_is_no_reference(tmp_path: Path) -> None:
    short = simulated_archive(tmp_path, "small", seed=1, runs=1, lumisections=30)
    with pytest.raises(InputError, match="too short"):
        make_reference(short, _runs(short))
