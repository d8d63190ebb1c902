"""What all figures share."""

from __future__ import annotations

from pathlib import Path

from dqmstream.experiments.figures import canvas, plain, shown_size


def test_what_a_figure_is_shown_at(tmp_path: Path) -> None:
    with canvas(tmp_path / "x.png", 4.0):
        pass
    assert shown_size(tmp_path / "x.png") == (1000, 400)
    assert plain("_a$b$") == r" _a\$b\$"
