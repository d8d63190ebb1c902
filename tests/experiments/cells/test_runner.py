"""Cells in this process and on Dask workers: the same figures, whatever dies; a stop keeps what is finished."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from distributed import Client

from dqmstream.errors import InputError, StateError
from dqmstream.experiments.benchmark.cell import BenchmarkCell
from dqmstream.experiments.benchmark.output_files import write
from dqmstream.experiments.benchmark.parquet import SCHEMA
from dqmstream.experiments.benchmark.run import run_benchmark
from dqmstream.experiments.benchmark.spec import Benchmark, TableSpec
from dqmstream.experiments.benchmark.summary import summarise
from dqmstream.experiments.cells.cell import Record
from dqmstream.experiments.cells.dask_workers import local_client, remote_client, sweep
from dqmstream.experiments.cells.runner import Progress, Workers, run_cells
from dqmstream.experiments.cells.signals import uninterrupted
from dqmstream.experiments.cells.store import CellStore
from dqmstream.experiments.faults.spec import FaultSpec, run_faults
from dqmstream.experiments.faults.track import WARM

SPEC = TableSpec(streams=("small",), strategies=("gain_map", "ring_means"), seeds=(100, 101, 102), runs=3, lumisections=200)
CELLS = Benchmark((SPEC,)).checked().cells()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("cluster") / "dask"
    with local_client(2, folder) as made:
        yield made
    assert not folder.exists()


def workers() -> list[psutil.Process]:
    """Dask's workers below this process."""
    return [child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]


class EchoCell(BenchmarkCell):
    """In place of its computation a cell of seed 101 raises, and one of seed 102 kills its worker."""

    def compute(self) -> Record:
        if self.seed == 101:
            raise KeyError(f"no {self.strategy}")
        if (self.seed, self.strategy) == (102, "gain_map"):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"cell": asdict(self)}


def test_a_worker_killed_in_the_middle_changes_no_figure(tmp_path: Path) -> None:
    expected = {cell: cell.compute()["lines"][-1]["accuracy"] for cell in CELLS}
    killed: list[int] = []

    def kill_one(progress: Progress[BenchmarkCell]) -> None:
        if progress.newest and not killed:
            victim = workers()[0]
            killed.append(victim.pid)
            victim.kill()

    records = run_benchmark(Benchmark((SPEC,)), tmp_path, Workers(2), progress=kill_one)
    assert killed
    assert {cell: record["lines"][-1]["accuracy"] for cell, record in records.items()} == expected
    assert len(list((tmp_path / "cells").iterdir())) == len(CELLS) and not (tmp_path / "dask").exists()
    assert not workers()


def test_what_raises_or_kills_its_worker_is_recorded_and_the_rest_is_computed(client: Client) -> None:
    cells = [EchoCell(**asdict(cell)) for cell in CELLS]
    came = {cell: record for cell, record, _ in sweep(client, cells)}
    assert came.keys() == set(cells)
    for cell, record in came.items():
        if cell.seed == 101:
            assert record["error"] == f"KeyError: 'no {cell.strategy}'" and "in compute" in record["traceback"]
        elif (cell.seed, cell.strategy) == (102, "gain_map"):
            assert "KilledWorker" in record["error"]
        else:
            assert record == {"cell": asdict(cell)}


def test_cells_of_the_fault_benchmark_are_computed_by_the_same_workers(client: Client, tmp_path: Path) -> None:
    spec = FaultSpec(detectors=("AutoDQM",), seeds=(3,), runs=WARM + 3, lumisections=40, every=0)
    (cell,) = spec.cells()
    records = run_faults(spec, tmp_path, Workers(scheduler=client.scheduler_info()["address"]))
    assert records[cell]["lumisections"] == json.loads(json.dumps(cell.compute()["lumisections"]))
    assert [path.name for path in tmp_path.rglob("*.json")] == [f"{cell.name}.json"]


@dataclass(frozen=True)
class SquareCell:
    """Computes the square of a number; a negative one raises."""

    number: int
    code: str = "now"

    @property
    def name(self) -> str:
        return f"square-{self.number}"

    @property
    def file(self) -> str:
        return f"squares/{self.name}.json"

    @property
    def identity(self) -> dict[str, Any]:
        return {"cell": self.number, "code": self.code}

    def compute(self) -> Record:
        if self.number < 0:
            raise ValueError(f"{self.number} is negative")
        return {**self.identity, "square": self.number**2}


def test_what_is_finished_is_reused_where_settings_and_code_agree(tmp_path: Path) -> None:
    cells, store = [SquareCell(2), SquareCell(3)], CellStore(tmp_path)
    first = run_cells(cells, store, Workers())
    assert [first[cell]["square"] for cell in cells] == [4, 9]
    (tmp_path / "squares" / "square-2.json").write_text(json.dumps({"cell": 2, "code": "now", "square": "kept"}))
    (tmp_path / "squares" / "square-3.json").write_text(json.dumps({"cell": 3, "code": "before", "square": "old"}))
    again = run_cells(cells, store, Workers())
    assert [again[cell]["square"] for cell in cells] == ["kept", 9]
    known = {cells[0]: {"square": "known"}, cells[1]: {"square": "known"}}
    (tmp_path / "squares" / "square-3.json").unlink()
    again = run_cells(cells, store, Workers(), known=known)
    assert [again[cell]["square"] for cell in cells] == ["kept", "known"]


def test_an_error_is_recorded_and_tried_again_or_ends_the_experiment(tmp_path: Path) -> None:
    cells, store = [SquareCell(-1), SquareCell(3)], CellStore(tmp_path)
    records = run_cells(cells, store, Workers())
    assert records[cells[0]]["error"] == "ValueError: -1 is negative" and records[cells[1]]["square"] == 9
    failed = tmp_path / "failed" / "square--1.json"
    assert "in compute" in json.loads(failed.read_text())["traceback"]
    store.save(cells[0], {**cells[0].identity, "square": 1})
    assert not failed.exists() and store.find(cells).keys() == set(cells)
    with pytest.raises(ValueError, match="-2 is negative"):
        run_cells([SquareCell(-2), SquareCell(4)], store, Workers(), keep_going=False)
    assert not list(tmp_path.rglob("square-4.json"))


@pytest.mark.parametrize("damaged", ["{", "[]"])
def test_a_damaged_record_is_told_by_its_file(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "squares").mkdir()
    (tmp_path / "squares" / "square-2.json").write_text(damaged)
    with pytest.raises(StateError, match=r"squares/square-2\.json .*delete it to compute it again"):
        run_cells([SquareCell(2)], CellStore(tmp_path), Workers())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot write .*file/out: .*choose another folder"):
        CellStore(tmp_path / "file" / "out")


def test_workers_of_a_scheduler_elsewhere_write_nothing(client: Client, tmp_path: Path) -> None:
    """What they compute comes back, and stands under the folder of whoever asked; a stream that cannot be drawn fails there."""
    spec = replace(SPEC, streams=("pair", "small"), strategies=("ring_means",), seeds=(100,), runs=3)
    address = client.scheduler_info()["address"]
    records = run_benchmark(Benchmark((spec,)), tmp_path, Workers(scheduler=address))
    errors = {cell.stream: record.get("error", "") for cell, record in records.items()}
    assert errors["small"] == "" and "InputError" in errors["pair"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "failed"]
    assert len(list((tmp_path / "cells").iterdir())) == len(list((tmp_path / "failed").iterdir())) == 1


def test_a_task_that_the_scheduler_holds_already_does_not_stand_for_a_cell_of_the_same_name(client: Client) -> None:
    cell = SquareCell(4)
    with client.as_current():
        held = client.submit(lambda: {"square": "of another call"}, key=f"cell-{cell.name}", pure=False)
        held.result()
    ((_, first, _),) = list(sweep(client, [cell]))
    ((_, again, _),) = list(sweep(client, [SquareCell(4, "later")]))
    assert (first["square"], first["code"], again["code"]) == (16, "now", "later")
    assert held.result() == {"square": "of another call"}


def test_a_spec_run_twice_gives_the_same_numbers_and_a_benchmark_that_stopped_goes_on(client: Client, tmp_path: Path) -> None:
    """The second is cut off by a cell that is gone; only that one is computed again."""
    spec = TableSpec(
        streams=("null", "small"), strategies=("ideal", "gain_map", "ring_means"), seeds=(100,), runs=3, lumisections=200
    )
    chosen = Benchmark((spec, replace(spec, name="again", streams=("small",), strategies=("gain_map",)))).checked()
    seen: list[Progress[BenchmarkCell]] = []
    tables = []
    for out in (tmp_path / "a", tmp_path / "b"):
        records = run_benchmark(chosen, out, Workers(scheduler=client.scheduler_info()["address"]))
        write(chosen, records, summarise(chosen, records), out)
        tables.append(pq.read_table(out / "results.parquet"))
    time_and_place = ("seconds", "learn_seconds")
    same = [name for name in SCHEMA.names if name not in time_and_place]
    assert tables[0].select(same).equals(tables[1].select(same))
    of_cell = {(row["stream"], row["strategy"]): row for row in tables[0].to_pylist()}
    assert len(of_cell) == tables[0].num_rows == 6, "the cell that both tables have is computed once"
    gain_map = of_cell["small", "gain_map"]
    assert gain_map["tables"] == ["benchmark", "again"]
    assert gain_map["accuracy"] == pytest.approx(np.mean(gain_map["accuracy_by_run"]))
    assert len(gain_map["run"]) == len(gain_map["auc_by_run"]) == len(gain_map["forgetting_by_run"]) + 1 == 3
    assert gain_map["lumisections_trained"] == 3 * 100 and gain_map["flops"] > 0 and gain_map["memory_bytes"] > 0
    assert gain_map["code"] == chosen.cells()[0].identity["code"] and dict(gain_map["versions"])["numpy"] == np.__version__

    stopped = next(cell for cell in chosen.cells() if cell.strategy == "ring_means")
    cells = tmp_path / "a" / "cells"
    (cells / f"{stopped.name}.json").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in cells.iterdir()}
    run_benchmark(chosen, tmp_path / "a", Workers(scheduler=client.scheduler_info()["address"]), progress=seen.append)
    assert [(one.finished, one.total) for one in seen] == [(5, 6), (6, 6)]
    assert seen[0].left_s is not None and seen[1].left_s == 0
    assert {path.name: path.stat().st_mtime_ns for path in cells.iterdir() if path.name in kept} == kept


def test_the_cluster_of_this_machine_listens_on_the_loopback_interface_alone(client: Client) -> None:
    assert client.run(lambda: os.environ["OMP_NUM_THREADS"], nanny=False).keys() == client.nthreads().keys()
    for process in (psutil.Process(), *workers()):
        for connection in process.net_connections():
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in ("127.0.0.1", "::1")


def test_a_scheduler_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dqmstream.experiments.cells.dask_workers._CONNECT_S", 0.3)
    with pytest.raises(InputError, match=r"no Dask scheduler answers at 127\.0\.0\.1:9"), remote_client("127.0.0.1:9"):
        pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_benchmark_that_is_stopped_ends_in_seconds_and_keeps_what_is_finished(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """The signal goes to all processes of the group, as that of a terminal does."""
    chosen = ["--strategy", "ring_means", "--stream", "small", "--runs", "3", "--lumisections", "200"]
    chosen += [part for seed in range(100, 140) for part in ("--seed", str(seed))]
    command = [sys.executable, "-m", "dqmstream", "benchmark", *chosen, "--out", str(tmp_path), "--workers", "2"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_heeds_interrupts
    ) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            assert "small 1" in next(line for line in lines if line.startswith("1/40"))
            below = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, number)
            _, said = process.communicate(timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, said
    assert "Traceback" not in said, said
    assert 1 <= len(list((tmp_path / "cells").iterdir())) < 40
    assert not (tmp_path / "dask").exists()
    _, left = psutil.wait_procs(below, timeout=5)
    assert not [child for child in left if psutil.pid_exists(child.pid) and child.status() != psutil.STATUS_ZOMBIE]


def _heeds_interrupts() -> None:
    """A test that a shell has put into the background would hand on that Ctrl-C is none of its business."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_stop_waits_for_the_end_of_what_must_not_be_interrupted() -> None:
    seen: list[str] = []

    def stop(number: int, frame: object) -> None:
        raise InterruptedError(number)

    usual = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(InterruptedError):
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                seen.append("inside")
            seen.append("after")
        assert seen == ["inside"]
        assert signal.getsignal(signal.SIGINT) is stop
    finally:
        signal.signal(signal.SIGINT, usual)
