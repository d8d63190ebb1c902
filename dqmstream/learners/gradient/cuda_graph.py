"""A training step as one CUDA graph: a small network's step is some hundred kernels, which take longer to launch than to run.

The first calls run as they would without this module, and are steps like any other. The last of them is watched: where it has
the GPU wait for the host, as experts in a loop do, no step is recorded. Where it has not, the next call is recorded and from
there on replayed: the same kernels in the same order on the same memory. Numbers that torch's own generator draws inside a step
(dropout) go on as they would without a recording.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

AS_EVER = 3
"""Calls before a step is recorded. The first ones make what later ones find: handles, workspaces, an optimizer's state."""

Step = Callable[[Sequence[Tensor]], Tensor]
"""A training step on a batch, which gives the loss."""


class CapturedStep:
    """A step that is called again and again with batches of the same shapes; to be called within `on_stream_of_captures`.

    The step must do the same work at each call, all of it on the device, as far as its batches are concerned.
    """

    def __init__(self, step: Step, before_capture: Callable[[], None]) -> None:
        """before_capture: called before the recording, if there is one."""
        self._step, self._before_capture = step, before_capture
        self._calls, self._waits = 0, False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: list[Tensor] = []
        self._loss: Tensor

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def __call__(self, batch: Sequence[Tensor]) -> Tensor:
        """The loss, on the device."""
        self._calls += 1
        if self._calls < AS_EVER or self._waits:
            return self._step(batch)
        if self._calls == AS_EVER:
            with _waiting_noted() as found:
                loss = self._step(batch)
            self._waits = bool(found)
            return loss
        if self._graph is None:
            self._batch = [given.clone() for given in batch]
            self._before_capture()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                self._loss = self._step(self._batch)
        else:
            for held, given in zip(self._batch, batch, strict=True):
                held.copy_(given)
        self._graph.replay()
        return self._loss.clone()


@contextmanager
def on_stream_of_captures(device: torch.device) -> Iterator[None]:
    """Have all work inside on a stream on which it may be recorded, which the default one is not; what is outside waits.

    Gradients remember the stream that they were first summed on, so the steps before the recording are on it too.
    """
    stream, outside = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        yield
    outside.wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Always the same: memory that was freed on one stream is not used again on another."""
    return torch.cuda.Stream(device)


@contextmanager
def _waiting_noted() -> Iterator[list[warnings.WarningMessage]]:
    """Collect a warning for each time that the host waits for the GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            found[:] = [warning for warning in found if "synchronizing CUDA operation" in str(warning.message)]
