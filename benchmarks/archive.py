"""What the archive costs: commits as rows grow, append and read against zarr-python alone, and files over a stretch of runs.

    python -m benchmarks.archive

Prints one JSON object, the last line of stdout. Ratios are of medians of measurements taken in turns within this one run; all
else depends on the machine. Takes 4 to 9 minutes, by what else the machine does, and 1 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dqmstream.lumisection import Geometry, he_depth1_mask
from dqmstream.storage import layout
from dqmstream.storage.archive import Archive
from dqmstream.storage.entries import Entry, Row
from dqmstream.storage.writer import ArchiveWriter

LUMISECTIONS_A_RUN = 1500
FEED = "bench@cluster.topic"


def rows(maps: np.ndarray, start: int, stop: int, lumisections_a_run: int = LUMISECTIONS_A_RUN) -> list[Entry]:
    """Rows at offsets start..stop; maps (n, 1, 64, 72) are taken in turn. Contents are numbers, no hashes: none is checked."""
    return [
        Row(
            offset=offset,
            run=1 + offset // lumisections_a_run,
            lumisection=1 + offset % lumisections_a_run,
            occupancy=maps[offset % len(maps)],
            content=offset * 0x9E3779B97F4A7C15 % 2**64,
            time_ns=1_700_000_000_000_000_000 + offset * 23_310_000_000,
            n_events=1500.0 + offset % 7,
            pileup=5.0,
            produced_ns=1_700_000_000_000_000_000 + offset * 23_310_000_000,
        )
        for offset in range(start, stop)
    ]


def sparse_maps() -> np.ndarray:
    """A map with one count, so that a million of them are written in a minute and no chunk is left out as empty."""
    maps = np.zeros((1, 1, 64, 72), np.uint16)
    maps[..., 5, 5] = 7
    return maps


def real_maps(size: int) -> np.ndarray:
    """Counts as a detector gives them: float32, shape (size, 1, 64, 72)."""
    rng = np.random.default_rng(0)
    maps = np.zeros((size, 1, 64, 72), np.float32)
    live = he_depth1_mask()
    maps[:, 0, live] = rng.binomial(1500, 0.5, (size, int(live.sum())))
    return maps


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


class Grown:
    """An archive that is filled by large batches, and then appended to by 64 rows."""

    def __init__(self, path: Path, size: int) -> None:
        self._writer = ArchiveWriter(Archive.create(path, dtype="uint16", source="/Bench#occupancy"))
        self._maps = sparse_maps()
        self._at = 0
        while self._at < size:
            self.append(min(8192, size - self._at))

    def append(self, count: int) -> float:
        """Seconds of one commit of so many rows."""
        batch = rows(self._maps, self._at, self._at + count)
        seconds = timed(lambda: self._writer.append(FEED, 0, batch, self._at, self._at + count))
        self._at += count
        return seconds


def commit_cost(folder: Path, small: int, large: int, repeats: int) -> dict[str, Any]:
    """Median latency of appending 64 rows to an archive of `large` rows over that of one of `small`."""
    began = time.perf_counter()
    few, many = Grown(folder / "few", small), Grown(folder / "many", large)
    built_s = time.perf_counter() - began
    found: dict[int, list[float]] = {small: [], large: []}
    for repeat in range(repeats + 5):
        for size, archive in ((small, few), (large, many)):
            seconds = archive.append(layout.ROWS_PER_CHUNK)
            if repeat >= 5:
                found[size].append(seconds)
    medians = {size: statistics.median(seconds) for size, seconds in found.items()}
    return {
        "rows": [small, large],
        "median_ms": [round(1000 * medians[size], 2) for size in (small, large)],
        "ratio": round(medians[large] / medians[small], 3),
        "built_s": round(built_s, 1),
    }


def plain_store(path: Path) -> zarr.Group:
    """The same log by zarr-python alone: the same arrays, chunks and codecs."""
    return layout.make_log(zarr.open_group(path, mode="w", zarr_format=3), FEED, 0, 0, Geometry(), "float32")


def plain_append(log: zarr.Group, batch: list[Entry]) -> None:
    """What a user of zarr would write: resize and assign, a column at a time. No commit, no index, no check."""
    table = [row for row in batch if isinstance(row, Row)]
    columns = {
        "occupancy": np.stack([row.occupancy for row in table]),
        **{
            name: np.array([getattr(row, name) for row in table], layout.ROW_COLUMNS[name][0])
            for name in ("run", "lumisection", "n_events", "pileup", "offset", "content", "quality")
        },
        **{name: np.array([row.time_ns for row in table], np.int64) for name in layout.TIMES},
    }
    for name, values in columns.items():
        array = log[name]
        start = array.shape[0]
        array.resize((start + len(values), *array.shape[1:]))
        array[start:] = values


def against_zarr(folder: Path, batch_rows: int, batches: int) -> dict[str, Any]:
    """Rows a second of appending, and of reading whole runs, over those of zarr-python alone. A run is a batch."""
    maps = real_maps(batch_rows)
    archive = Archive.create(folder / "archive", source="/Bench#occupancy")
    writer, log = ArchiveWriter(archive), plain_store(folder / "plain")
    appends: dict[str, list[float]] = {"archive": [], "zarr": []}
    for batch in range(batches):
        start, stop = batch * batch_rows, (batch + 1) * batch_rows
        entries = rows(maps, start, stop, batch_rows)
        appends["archive"].append(timed(lambda e=entries, a=start, b=stop: writer.append(FEED, 0, e, a, b)))  # type: ignore[misc]
        appends["zarr"].append(timed(lambda e=entries: plain_append(log, e)))  # type: ignore[misc]
    reader = Archive.open(archive.path)
    reader.runs()
    names = ["occupancy", "time", "produced", "committed", "n_events", "pileup", "content", "quality"]
    reads: dict[str, list[float]] = {"archive": [], "zarr": []}
    for batch in range(batches):
        part = slice(batch * batch_rows, (batch + 1) * batch_rows)
        reads["archive"].append(timed(lambda run=batch + 1: reader.run(run)))  # type: ignore[misc]
        reads["zarr"].append(timed(lambda p=part: [log[name][p] for name in names]))  # type: ignore[misc]
    found: dict[str, Any] = {"batch_rows": batch_rows}
    for what, seconds in (("append", appends), ("read", reads)):
        per_s = {name: batch_rows / statistics.median(those) for name, those in seconds.items()}
        found[f"{what}_rows_per_s"] = {name: round(rate) for name, rate in per_s.items()}
        found[f"{what}_ratio"] = round(per_s["archive"] / per_s["zarr"], 3)
    return found


def files_of(path: Path) -> int:
    return sum(file.is_file() for file in path.rglob("*"))


def files_over_runs(folder: Path, runs: int, lumisections: int) -> dict[str, Any]:
    """Files over runs of one-row commits, as at real rate; each run is tagged at its stop, then the rest expires.

    150 lumisections are an hour. bound: files at the last peak, less what the tags since the middle keep, over those at the
    middle one. (The first peaks are lower: small chunks lie in manifests and have no files.)
    """
    archive = Archive.create(folder / "A", source="/Bench#occupancy")
    writer, maps = ArchiveWriter(archive), real_maps(64)
    peaks, left = [], []
    began = time.perf_counter()
    for run in range(runs):
        start = run * lumisections
        for offset in range(start, start + lumisections):
            writer.append(FEED, 0, rows(maps, offset, offset + 1, lumisections), offset, offset + 1)
        archive.refresh().tag(f"run-{run + 1}")
        peaks.append(files_of(archive.path))
        archive.expire(0)
        left.append(files_of(archive.path))
    middle = (runs - 1) // 2
    return {
        "commits": runs * lumisections,
        "files_at_peaks": peaks,
        "files_after_expiry": left,
        "files_a_tagged_run": round((left[-1] - left[0]) / max(runs - 1, 1), 1),
        "bound": round((peaks[-1] - left[-1] + left[middle]) / peaks[middle], 3),
        "commit_ms": round(1000 * (time.perf_counter() - began) / (runs * lumisections), 1),
    }


def compaction(folder: Path, commits: int) -> dict[str, Any]:
    """What compaction makes of an archive of so many one-row commits that never expired."""
    archive = Archive.create(folder / "A", source="/Bench#occupancy")
    writer, maps = ArchiveWriter(archive), real_maps(64)
    for offset in range(commits):
        writer.append(FEED, 0, rows(maps, offset, offset + 1), offset, offset + 1)
    began = time.perf_counter()
    done = archive.refresh().compact(0)
    return {"commits": commits, **asdict(done), "seconds": round(time.perf_counter() - began, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large archive (default: a million)")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name, measure in (
        ("commit_cost", lambda folder: commit_cost(folder, 10_000, options.rows, options.repeats)),
        ("against_zarr", lambda folder: against_zarr(folder, 1024, options.batches)),
        ("files", lambda folder: files_over_runs(folder, options.runs, 150)),
        ("compaction", lambda folder: compaction(folder, 300)),
    ):
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            found[name] = {}
            seconds = timed(lambda m=measure, f=folder, n=name: found[n].update(m(Path(f))))  # type: ignore[misc]
        found[name]["seconds_in_all"] = round(seconds, 1)
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
