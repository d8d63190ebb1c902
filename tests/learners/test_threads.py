"""States and scores have the same bits on any number of cores, and numbers of threads are restored afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from dqmstream.learners.threads import ThreadPools, held_threads
from tests.runs import simulated_archive

LEARN = """
import hashlib, json, os, sys
from pathlib import Path

cores, path, folder, *names = sys.argv[1:]
os.sched_setaffinity(0, range(int(cores)))

import numpy as np
from dqmstream.learners.stream import checkpoint
from dqmstream.learners.stream.learner import Learner
from dqmstream.learners.stream.learner_settings import LearnerSettings
from dqmstream.learners.registry import make_strategy
from dqmstream.storage.archive import Archive

archive = Archive.open(Path(path))
found = {}
for name in names:
    with Learner(archive, Path(folder) / name, LearnerSettings(strategy=name, recipe={}, seed=3)) as learner:
        learner.follow(lambda: False, once=True)
        scores = learner.evaluator.score(learner.strategy).log_probability
    meta, arrays = checkpoint.load_newest(Path(folder) / name / "checkpoints")
    bits = {key: hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for key, array in arrays.items()}
    found[name] = bits | {"scores": hashlib.sha256(scores.tobytes()).hexdigest(), "pools": meta.pools}
print(json.dumps(found))
"""

VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "GOTO_NUM_THREADS")


@pytest.mark.skipif(len(os.sched_getaffinity(0) & {0, 1}) < 2, reason="takes two cores")
def test_the_bits_are_the_same_on_one_core_and_on_two(tmp_path: Path) -> None:
    """With one thread, the default, in processes without variables that set threads."""
    archive = simulated_archive(tmp_path, runs=3)
    names = ["slda", "ridge", "logistic", *(["hybrid"] if os.environ.get("DQMSTREAM_SOAK") else [])]
    unset = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    found = []
    for cores in (1, 2):
        command = [sys.executable, "-c", LEARN, str(cores), str(archive.path), str(tmp_path / str(cores)), *names]
        done = subprocess.run(command, env=unset, check=True, timeout=600, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    for name in names:
        differing = [key for key, bits in found[0][name].items() if bits != found[1][name][key]]
        assert differing == []
        assert any("openblas" in pool for pool in found[0][name]["pools"])
        assert all(pool.endswith(" 1") for pool in found[0][name]["pools"])


def test_numbers_of_threads_are_restored() -> None:
    torch.set_num_threads(1)  # PyTorch's own number, which is not that of the OpenMP library it came with
    with threadpool_limits(2):
        before = [pool["num_threads"] for pool in threadpool_info()]
        with held_threads(1):
            assert {pool["num_threads"] for pool in threadpool_info()} == {1}
        assert [pool["num_threads"] for pool in threadpool_info()] == before
        pools = ThreadPools(3)
        assert all(used.endswith(" 3") for used in pools.used())
        pools.release()
        assert [pool["num_threads"] for pool in threadpool_info()] == before
