"""Packed gains are right within half a step, and dead channels exactly."""

from __future__ import annotations

import numpy as np

from dqmstream.learners.memory.gain_codec import LINEAR, STEP, pack, unpack

UNIT = np.geomspace(1e-3, 0.05, 40)


def test_packed_gains_are_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    gain = UNIT * rng.standard_normal((200, 40)) * np.geomspace(1e-3, 10, 200)[:, None]
    code = pack(gain, UNIT)
    assert code.dtype == np.int8
    step = np.hypot(STEP * UNIT, gain / LINEAR)
    assert (np.abs(unpack(code, UNIT) - gain) < 0.55 * step).all()
    np.testing.assert_array_equal(pack(unpack(code, UNIT), UNIT), code)


def test_dead_unchanged_and_very_large_gains() -> None:
    for gain, found in ((-1.0, -1.0), (-0.999, -1.0), (0.0, 0.0)):
        np.testing.assert_array_equal(unpack(pack(np.full(40, gain), UNIT), UNIT), found)
    most = unpack(pack(np.full(40, 1e6), UNIT), UNIT)
    assert (most > 58 * UNIT).all()
    within = UNIT > 0.9 / 58
    np.testing.assert_allclose(unpack(pack(np.full(40, -0.9), UNIT), UNIT)[within], -0.9, rtol=0.03)
    np.testing.assert_allclose(unpack(pack(np.full(40, 0.5), UNIT), UNIT)[within], 0.5, rtol=0.03)
