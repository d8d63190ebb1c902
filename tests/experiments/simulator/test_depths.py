"""All seven depths of HCAL: the geometry, HE depth 1 as it is alone, and faults through all depths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dqmstream.errors import InputError
from dqmstream.experiments.simulator import LIVE, stream, write
from dqmstream.experiments.simulator.conditions import run_numbers
from dqmstream.experiments.simulator.depths import AllDepthsRun, all_depths, in_he, nominal_rates
from dqmstream.experiments.simulator.streams import named_stream
from dqmstream.lumisection import IETA, Geometry, ieta_row, rbx_mask
from dqmstream.storage.archive import Archive
from dqmstream.storage.imports.importer import import_files


def drawn(name: str, seed: int, runs: int, lumisections: int = 20) -> list[AllDepthsRun]:
    named = named_stream(name)
    numbers = run_numbers(named, seed, runs)
    return list(all_depths(stream(name, seed=seed, runs=runs, lumisections=lumisections), named, seed, numbers))


@pytest.fixture(scope="module")
def campaign() -> list[AllDepthsRun]:
    return drawn("campaign", 4, 14)


def test_every_depth_has_the_channels_of_hcal() -> None:
    live = nominal_rates() > 0
    rings = np.abs(IETA)
    per_row = {ring: live[:, rings == ring].sum(axis=2) for ring in range(1, 33)}
    assert (per_row[10] == np.array([72, 72, 72, 72, 0, 0, 0])[:, None]).all()  # HB
    assert (per_row[16] == np.array([72, 72, 72, 72, 0, 0, 0])[:, None]).all()  # HB 1-3, HE 4
    assert (per_row[27] == np.array([36] * 7)[:, None]).all()
    assert (per_row[31] == np.array([36] * 4 + [0] * 3)[:, None]).all()  # HF
    assert (live[0] | ~LIVE).all()
    assert in_he().sum() == live[:, (rings >= 17) & (rings <= 29)].sum() + 2 * 72


def test_he_depth_1_keeps_its_bits(campaign: list[AllDepthsRun]) -> None:
    for alone, run in zip(stream("campaign", seed=4, runs=14, lumisections=20), campaign, strict=True):
        assert run.run == alone.run
        assert np.array_equal(run.counts[:, 0, LIVE], alone.counts[:, LIVE])
        assert np.array_equal(run.rate[0, LIVE], alone.rate[LIVE])


def test_counts_follow_the_rates_of_all_depths(campaign: list[AllDepthsRun]) -> None:
    run = max(campaign, key=lambda one: len(one.events))
    p = 1 - (1 + run.rate[:, :, :, None] * run.pileup / 4.75) ** -4.75
    mean, variance = (p * run.events).sum(axis=-1), (p * (1 - p) * run.events).sum(axis=-1)
    known = variance > 5
    pull = (run.counts.sum(axis=0) - mean)[known] / np.sqrt(variance[known])
    assert known.sum() > 8000 and abs(pull.mean()) < 0.05 and pull.std() == pytest.approx(1, abs=0.03)
    assert not run.counts[:, run.rate == 0].any()


def test_a_box_fails_in_all_depths_of_he_and_channels_of_other_depths_fail_and_drift(campaign: list[AllDepthsRun]) -> None:
    boxes = [(run, fault) for run in campaign for fault in run.truth["faults"] if fault["kind"] == "box"]
    run, fault = boxes[0]
    box = next(one for one in run.truth["rbx"])
    members = in_he() & rbx_mask(box["side"], box["n"])
    named = {tuple(place) for place in fault["channels"]}
    assert named == {(int(IETA[row]), int(column) + 1, int(depth) + 1) for depth, row, column in np.argwhere(members)}
    others = [one for run in campaign for one in run.truth["faults"] if "depth" in one["where"]]
    assert others
    for one in others:
        ieta, iphi, depth = one["channels"][0]
        at = [run.rate[depth - 1, ieta_row(ieta), iphi - 1] for run in campaign if one in run.truth["faults"]]
        if one["factor"] == 0:
            assert not any(at)
    before, after = (run.rate[1, ieta_row(5)] for run in campaign[:2])
    assert np.log(after / before).std() == pytest.approx(0.004, rel=0.4)


def test_the_null_twin_has_one_rate_in_all_depths() -> None:
    first, second = drawn("campaign-null", 1, 2, 6)
    assert np.array_equal(first.rate, second.rate) and not second.truth["faults"]


def test_files_of_seven_depths_are_imported_and_other_depths_refused(tmp_path: Path) -> None:
    *_, truth = write(tmp_path / "out", "campaign", 2, 2, 8, depths=7)
    head = json.loads(truth.read_text())
    live = int((nominal_rates() > 0).sum())
    assert head["depths"] == 7 and len(head["nominal_rates"]) == len(head["runs"][1]["gain"]) == live
    archive = Archive.open_or_create(tmp_path / "A", geometry=Geometry(7), dtype="uint16")
    import_files([tmp_path / "out"], lambda: archive, dtype=np.dtype("uint16"), depths=7)
    archive = Archive.open(tmp_path / "A")
    first = archive.runs()[0]
    held = archive.run(first.run)["occupancy"].values
    assert np.array_equal(held, np.load(tmp_path / "out" / f"Run{first.run}_Dataset_campaign.npy"))
    with pytest.raises(InputError, match=r"1 depth .* or 7 .*, not 4"):
        write(tmp_path / "no", "campaign", 2, 2, 8, depths=4)
    with pytest.raises(InputError, match="the stream tracks is of HE depth 1 alone"):
        write(tmp_path / "no", "tracks", 2, 2, 8, depths=7)
