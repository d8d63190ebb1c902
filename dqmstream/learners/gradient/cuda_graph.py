"""A training step recorded as a CUDA graph and replayed.

A step of a small network launches some hundred kernels, which takes longer than running them; a replay launches them at once.
The first calls run the step as usual. During the last of these PyTorch reports where the host waits for the GPU; a step that
makes it wait, as experts computed in a loop do, is never recorded. Otherwise the next call is recorded, and replayed from then
on: the same kernels in the same order on the same memory. Random numbers of PyTorch's own generator (dropout) are those that
unrecorded steps would draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

UNRECORDED = 3
"""Calls before a step is recorded. The first ones create handles, workspaces and the optimizer's state."""

Step = Callable[[Sequence[Tensor]], Tensor]
"""A training step: a batch to its loss."""


class CapturedStep:
    """A step that is called many times with batches of one shape, inside `on_stream_of_captures`.

    At each call the step must do the same work on its batch, all of it on the device.
    """

    def __init__(self, step: Step, before_capture: Callable[[], None]) -> None:
        """before_capture: called once, before the step is recorded."""
        self._step, self._before_capture = step, before_capture
        self._calls, self._waits = 0, False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: list[Tensor] = []
        self._loss: Tensor

    @property
    def captured(self) -> bool:
        """Whether the step has been recorded."""
        return self._graph is not None

    def __call__(self, batch: Sequence[Tensor]) -> Tensor:
        """The loss, on the device."""
        self._calls += 1
        if self._calls < UNRECORDED or self._waits:
            return self._step(batch)
        if self._calls == UNRECORDED:
            with _host_waits() as found:
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
    """Inside, work goes to a stream that can be recorded, which the default stream cannot; work outside waits for it.

    The steps before the recording must be on that stream too: gradients remember the stream that they were first summed on.
    """
    stream, outside = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        yield
    outside.wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One stream a device: memory that was freed on one stream is not reused on another."""
    return torch.cuda.Stream(device)


@contextmanager
def _host_waits() -> Iterator[list[warnings.WarningMessage]]:
    """Collects a warning for each time that the host waits for the GPU inside."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            found[:] = [warning for warning in found if "synchronizing CUDA operation" in str(warning.message)]
