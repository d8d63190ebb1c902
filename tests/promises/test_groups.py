"""README: workers of one archive come, go, die and wake up again, and each lumisection is filed once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import RetriableError

from dqmstream.learners.evaluation.history import read_history
from dqmstream.service.consume import default_group
from dqmstream.storage.archive import Archive
from dqmstream.storage.writer import ArchiveWriter, OffsetConflict
from dqmstream.streaming.dead_letters import FolderDeadLetters
from dqmstream.streaming.ingest import Ingest
from dqmstream.streaming.kafka import KafkaFeed, KafkaSender, create_topic
from dqmstream.streaming.publisher import UNNAMED_SOURCE, publish
from tests.commandline import Command, dqmstream, tell_messages
from tests.maps import row
from tests.promises.test_exactly_once import assert_equals, filed, wait_until
from tests.runs import simulated_archive
from tests.scale import SESSION_MS

pytestmark = pytest.mark.kafka

RUNS, LUMISECTIONS, PARTITIONS = 12, 20, 4
FLUSH_S = 6
"""How long rows of the zombie wait to be filed: longer than a session, so that another worker files them first."""

MESSAGES = LUMISECTIONS + 2
"""Messages of a run, with its start and stop."""


class Worker:
    """A `dqmstream consume` process on the archive, and its log."""

    def __init__(self, bootstrap: str, topic: str, archive: Path, *flags: str, **settings: str) -> None:
        self.archive = archive
        self.log = archive.with_name(f"{archive.name}-worker-{len(list(archive.parent.glob('*-worker-*')))}")
        places = ("--bootstrap", bootstrap, "--topic", topic, "--archive", archive, "--group", topic)
        env = os.environ | {"DQMSTREAM_SESSION_TIMEOUT_MS": str(SESSION_MS)} | settings
        self.process = Command("--verbose", "consume", *places, *flags, env=env, log=self.log, before=tell_messages)

    def reads(self) -> list[int]:
        """Each partition that it was given, in order; a rebalance gives all anew."""
        told = re.findall(r"reading .* partition=(\d+)", self.log.read_text())
        return [int(partition) for partition in told]

    def messages(self) -> int:
        """Number of messages that it has read, as it reported last."""
        told = re.findall(r"^messages (\d+)$", self.log.read_text(), re.MULTILINE)
        return int(told[-1]) if told else 0

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(60)
        assert self.process.returncode == (-number if number == signal.SIGKILL else 0), self.log.read_text()


class Lab:
    """A topic, the runs to publish on it, and the workers that file them."""

    def __init__(self, bootstrap: str, topic: str, source: Archive, archive: Path, stack: ExitStack) -> None:
        self.bootstrap, self.topic, self.source, self.archive = bootstrap, topic, source, archive
        create_topic(bootstrap, topic, PARTITIONS)
        self._stack = stack
        self._admin = stack.enter_context(closing(KafkaAdminClient(bootstrap_servers=bootstrap)))
        self._runs = [summary.run for summary in source.runs()]
        self._sent = 0
        self.workers: list[Worker] = []
        Archive.create(archive, source=UNNAMED_SOURCE)

    def start(self, *flags: str, **settings: str) -> Worker:
        worker = Worker(self.bootstrap, self.topic, self.archive, *(flags or ("--no-learn",)), **settings)
        self._stack.callback(worker.process.kill)
        self.workers.append(worker)
        return worker

    def publish(self, runs: int = RUNS) -> None:
        """Publish the next runs."""
        with closing(KafkaSender(self.bootstrap, self.topic)) as sender:
            publish(self.source, sender, self._runs[self._sent : self._sent + runs])
        self._sent = min(self._sent + runs, len(self._runs))

    def wait(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds; no worker may end by itself (the test's timeout bounds the wait)."""
        while not condition():
            for worker in self.workers:
                assert worker.process.poll() in (None, 0, -signal.SIGKILL), worker.log.read_text()
            time.sleep(0.1)  # looking costs a processor, which the workers need to get there

    def wait_until_filed(self) -> None:
        self.wait(lambda: filed(self.archive) == self._sent * LUMISECTIONS)

    def members(self) -> dict[str, list[int]]:
        """Partitions of each member, by instance or else member id; {} unless the group has settled."""
        try:
            group = self._admin.describe_groups([self.topic])[self.topic]
        except RetriableError:  # the first group of a broker makes it create the topic in which it keeps them
            return {}
        if group["group_state"] != "Stable":
            return {}
        return {
            member["group_instance_id"] or member["member_id"]: sorted(
                p for topic in member["member_assignment"]["assigned_partitions"] for p in topic["partitions"]
            )
            for member in group["members"]
        }

    def wait_until_shared(self, *sizes: int) -> None:
        """Wait until the group has given each member this many partitions."""
        self.wait(lambda: sorted(map(len, self.members().values())) == sorted(sizes))

    def used_partitions(self) -> set[int]:
        """Partitions that hold messages."""
        with closing(KafkaConsumer(bootstrap_servers=self.bootstrap)) as consumer:
            ends = consumer.end_offsets([TopicPartition(self.topic, p) for p in range(PARTITIONS)])
        return {tp.partition for tp, end in ends.items() if end > 0}

    def filed_partitions(self) -> set[int]:
        """Partitions that have rows in the archive."""
        return {partition for log in Archive.open(self.archive).offsets().values() for partition in log}

    def check(self) -> None:
        assert_equals(Archive.open(self.archive), self.source)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return simulated_archive(tmp_path_factory.mktemp("source"), runs=RUNS, lumisections=LUMISECTIONS)


@pytest.fixture
def lab(bootstrap: str, topic: str, source: Archive, tmp_path: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(bootstrap, topic, source, tmp_path / "A", stack)


def test_workers_join_leave_and_die_and_nothing_is_lost_or_repeated(lab: Lab) -> None:
    lab.publish(2)
    lab.start()
    second, third = lab.start(), lab.start()
    lab.publish(2)
    lab.wait_until_shared(2, 1, 1)
    lab.publish(2)
    second.end()
    lab.publish(2)
    lab.wait_until_shared(2, 2)
    lab.publish(2)
    third.end(signal.SIGKILL)
    lab.publish(2)
    lab.wait_until_filed()
    lab.wait_until_shared(4)
    lab.check()


def test_a_static_member_that_is_started_again_keeps_its_partitions_and_troubles_no_other(lab: Lab) -> None:
    long = {"DQMSTREAM_SESSION_TIMEOUT_MS": "30000"}
    first, second = (lab.start("--no-learn", "--instance", name, **long) for name in ("a", "b"))
    lab.wait_until_shared(2, 2)
    lab.publish(4)
    lab.wait_until_filed()
    shared, read = lab.members(), first.reads()
    second.end()
    lab.publish(4)
    again = lab.start("--no-learn", "--instance", "b", **long)
    lab.publish(4)
    lab.wait_until_filed()
    assert lab.members() == shared
    assert first.reads() == read
    assert sorted(again.reads()) == shared["b"]
    lab.check()


def test_a_zombie_that_wakes_up_is_refused_and_goes_on_as_a_member(lab: Lab) -> None:
    """It was stopped before it could file what it had read, and another worker has filed that since."""
    # What comes after a partition's first batch waits, and is due when it wakes up.
    zombie = lab.start(DQMSTREAM_FLUSH_S=str(FLUSH_S))
    lab.wait_until_shared(4)
    lab.publish(4)
    lab.wait(lambda: zombie.messages() == 4 * MESSAGES)
    lab.publish(4)
    # Not while it commits: a process that is stopped with the archive's lock in its hands keeps the others out.
    lab.wait(lambda: zombie.messages() == 8 * MESSAGES and lab.filed_partitions() == lab.used_partitions())
    zombie.process.send_signal(signal.SIGSTOP)
    due = time.monotonic() + FLUSH_S
    assert filed(lab.archive) < 8 * LUMISECTIONS
    lab.start()
    lab.wait_until_filed()
    lab.wait(lambda: time.monotonic() > due)
    zombie.process.send_signal(signal.SIGCONT)
    lab.wait_until_shared(2, 2)
    lab.publish(4)
    lab.wait_until_filed()
    assert "another worker has filed further" in zombie.log.read_text()
    lab.check()


def test_a_batch_that_another_worker_has_filed_is_refused_whoever_sends_it(lab: Lab, tmp_path: Path) -> None:
    """Two workers that both believe they have all partitions, since each is in a group of its own."""
    with ExitStack() as stack:
        feeds, loops = [], []
        for group, flush_s in (("slow", 3600.0), ("quick", 0.01)):
            feeds.append(stack.enter_context(closing(KafkaFeed(lab.bootstrap, lab.topic, group))))
            writer, letters = ArchiveWriter(Archive.open(lab.archive)), FolderDeadLetters(tmp_path / "letters")
            loops.append(Ingest(feeds[-1], writer, letters, topic=lab.topic, flush_s=flush_s))
            stack.callback(loops[-1].close)
        slow, quick = loops
        step_until(slow, lambda: feeds[0].exhausted)
        lab.publish(4)
        step_until(slow, lambda: slow.counts.messages == 4 * MESSAGES)
        lab.publish(8)
        step_until(slow, lambda: slow.counts.messages == 12 * MESSAGES)
        assert slow.waiting > 0
        step_until(quick, lambda: filed(lab.archive) == RUNS * LUMISECTIONS)
        before = slow.counts.rows
        assert slow.drain()  # refused
        step_until(slow, lambda: feeds[0].exhausted)
        assert slow.drain()
        assert slow.counts.rows == before
        lab.check()
    head = Archive.open(lab.archive)
    ((feed_name, partitions),) = head.offsets().items()
    partition, (_, following) = next(iter(partitions.items()))
    with pytest.raises(OffsetConflict):  # a fresh session that believes in an old offset
        ArchiveWriter(Archive.open(lab.archive)).append(
            feed_name, partition, [row(head, 1, 1, following - 1)], following - 1, following
        )
    lab.check()


def step_until(loop: Ingest, condition: Callable[[], bool]) -> None:
    while not condition():
        loop.step(0.1)


def test_one_learner_learns_for_all_workers_of_an_archive(bootstrap: str, topic: str, tmp_path: Path) -> None:
    source = simulated_archive(tmp_path / "source", runs=3)
    flags = ("--strategy", "gain_map")
    history = tmp_path / "A.state" / "live" / "history.jsonl"
    with ExitStack() as stack:
        lab = Lab(bootstrap, topic, source, tmp_path / "A", stack)
        lab.start(*flags)
        lab.start(*flags)
        lab.wait_until_shared(2, 2)
        lab.publish()
        # A learner that was started beside the one that learns ends again when it finds the place taken.
        lab.wait(lambda: history.exists() and len(read_history(history)) == 3 and len(learners_of(lab.workers)) == 1)
        assert sorted(line.run for line in read_history(history)) == [summary.run for summary in source.runs()]
        lab.check()


def learners_of(workers: Sequence[Worker]) -> list[int]:
    """Process ids of the learners that run as children of these workers."""
    found = []
    for worker in workers:
        children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
        found += [int(child) for child in children]
    return found


def test_a_copy_of_an_archive_takes_nothing_from_the_original(
    bootstrap: str, topic: str, source: Archive, tmp_path: Path
) -> None:
    """Both have the same archive id. By default each has a group of its own; in the same group, a warning says so."""
    create_topic(bootstrap, topic, 1)
    original, copy = Archive.create(tmp_path / "A").path, tmp_path / "B"
    shutil.copytree(original, copy)
    places = ("--bootstrap", bootstrap, "--topic", topic, "--no-learn")
    worker = Command("consume", *places, "--archive", original)
    with closing(KafkaSender(bootstrap, topic)) as sender:
        publish(source, sender, [source.runs()[0].run])
    wait_until(lambda: filed(original) == LUMISECTIONS, worker)
    group = default_group(Archive.open(original))
    shared = dqmstream("consume", *places, "--archive", copy, "--group", group, "--until-idle", 1)
    assert "workers that do not file into this archive" in shared.stderr
    assert shared.returncode == 0, "and either may have been given the partition"
    own = dqmstream("consume", *places, "--archive", copy, "--until-idle", 1)
    assert (own.returncode, own.stderr.count("[warning"), filed(copy)) == (0, 0, LUMISECTIONS), own.stderr
    worker.terminate()
    assert worker.wait(60) == 0
