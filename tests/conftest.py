"""What all tests share: one thread a process, a real broker for the session, a topic name of its own for each that asks."""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack

import pytest
import structlog

from tools.broker import Broker, SetupError

# Before anything imports numpy or PyTorch, for this process and all that it starts. The workers of pytest-xdist fill the cores
# between them, and threads that spin at barriers for a core that another wants made one conformance check take 212 s for 21 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exempt what the test modules import, which stays to the end, from garbage collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """Collect everything at the end: libraries report what is left as leaks."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The promises first, which take longest: what is short is left to fill the workers' last minute."""
    items.sort(key=lambda item: "promises" not in item.path.parts)


@pytest.fixture(autouse=True)
def logs_as_usual() -> Iterator[None]:
    """A command that ran inside a test has set up logs; the next test sees all events again."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A running broker, which a test may kill if it starts it again. Its log is kept when a test of the session failed."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(Broker())
        except SetupError as error:
            # Never skip: a promise that was not tested is not kept.
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        yield running
        running.keep_log = request.session.testsfailed > 0


@pytest.fixture(scope="session")
def bootstrap(request: pytest.FixtureRequest) -> str:
    """host:port of the broker to test against: DQMSTREAM_TEST_BOOTSTRAP, or else `broker`, started for it.

    Another broker must allow the sessions of `tests.scale.SESSION_MS` that tests ask for (group.min.session.timeout.ms).
    """
    return os.environ.get("DQMSTREAM_TEST_BOOTSTRAP") or request.getfixturevalue("broker").bootstrap


@pytest.fixture
def topic() -> str:
    """A name that no other test has; the topic is not created."""
    return f"test-{uuid.uuid4().hex[:12]}"
