"""The broker is real, survives a kill with its data, listens on loopback only, and leaves nothing behind but a log."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic

from tools import broker as tool
from tools.broker import ROOT, Broker, SetupError

TIMEOUT_S = 60
QUICK = {"reconnect_backoff_max_ms": 1000}  # its default waits up to 30 s for a broker that came back

ENDING = "raise SystemExit(int(__import__('os').environ['DQMSTREAM_BOOTSTRAP'].startswith('127.0.0.1:')) + 6)"
WAITING = "import os; print(os.environ['DQMSTREAM_BOOTSTRAP'], flush=True); input()"
STARTED_BY_A_THREAD = """
import threading
from tools.broker import Broker
broker = Broker()
thread = threading.Thread(target=broker.__enter__)
thread.start()
thread.join()
print(broker.pid, flush=True)
input()
"""


def read_all(bootstrap: str, topic: str) -> list[bytes]:
    """Values of the topic's only partition, from its first to its present end."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False, **QUICK)
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        end = consumer.end_offsets([partition])[partition]
        values: list[bytes] = []
        while consumer.position(partition) < end:
            for records in consumer.poll(timeout_ms=1000).values():
                values += [record.value for record in records]
        return values
    finally:
        consumer.close()


def produce(bootstrap: str, topic: str, value: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", **QUICK)
    try:
        producer.send(topic, value).get(timeout=TIMEOUT_S)
    finally:
        producer.close()


def wait_for_end(pid: int) -> None:
    """Wait until a process that is not our child is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # gone before we looked
    try:
        assert select.select([handle], [], [], TIMEOUT_S)[0], f"process {pid} is still there"
    finally:
        os.close(handle)


def open_files(pid: int) -> set[str]:
    names = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            names.add(str(link.readlink()))
    return names


@pytest.fixture
def litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs that are kept, and the data of a broker whose parent was killed, go to a folder that pytest removes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.kafka
def test_a_message_outlives_a_killed_broker(broker: Broker, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    try:
        admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        admin.close()
    produce(broker.bootstrap, topic, b"before")
    assert (broker.data / f"{topic}-0").is_dir()
    address, pid = broker.bootstrap, broker.pid
    broker.kill()
    assert not broker.running
    broker.start()
    assert broker.bootstrap == address
    assert broker.pid != pid
    assert read_all(broker.bootstrap, topic) == [b"before"]
    produce(broker.bootstrap, topic, b"after")
    assert read_all(broker.bootstrap, topic) == [b"before", b"after"]


@pytest.mark.kafka
def test_it_listens_on_loopback_only(broker: Broker) -> None:
    sockets = open_files(broker.pid)
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{broker.pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                listening.append(local.split(":")[0])
    # 127.0.0.1 for the clients, for the controller, and for those who are told another address.
    assert listening == ["0100007F", "0100007F", "0100007F"]


@pytest.mark.usefixtures("litter")
@pytest.mark.kafka
def test_a_block_that_ends_with_an_exception_keeps_the_log_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SetupError, match=r"ended while it started: .*Address already in use"), Broker() as broker:
        pid, log, data = broker.pid, broker.log, broker.data
        assert "Kafka Server started" in broker.log_tail()
        with pytest.raises(RuntimeError, match="started already"):
            broker.start()
        broker.stop()
        broker.stop()  # twice does no harm
        host, port = broker.bootstrap.split(":")
        with socket.create_server((host, int(port))):
            broker.start()
    assert f"log is kept in {log}" in capfd.readouterr().err
    assert "Kafka Server started" in log.read_text()
    assert not data.exists()
    wait_for_end(pid)


@pytest.mark.usefixtures("litter")
@pytest.mark.kafka
def test_a_broker_that_does_not_start_says_why_and_where_its_log_is() -> None:
    with pytest.raises(SetupError, match=r"broker\.heartbeat\.interval\.ms.*\(log: (.*)\)") as caught:
        Broker({"broker.heartbeat.interval.ms": "often"}).__enter__()
    told = str(caught.value)
    assert "\n" not in told
    log = Path(re.search(r"\(log: (.*)\)", told)[1])
    assert "often" in log.read_text()


@pytest.mark.usefixtures("litter")
@pytest.mark.kafka
def test_a_broker_dies_with_its_parent_even_if_a_thread_that_ended_has_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTED_BY_A_THREAD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)  # it lives on after its thread
        parent.kill()
    wait_for_end(pid)


@pytest.mark.usefixtures("litter")
@pytest.mark.kafka
def test_run_gives_the_command_a_broker_and_returns_its_exit_code() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tools.broker", "run", "--", sys.executable, "-c", ENDING],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 7, ended.stderr
    assert "log is kept in" in ended.stderr


@pytest.mark.usefixtures("litter")
@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_run_stops_the_command_and_the_broker(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tools.broker", "run", "--", sys.executable, "-c", WAITING],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as running:
        host, port = running.stdout.readline().decode().strip().split(":")
        running.send_signal(number)
        assert running.wait(TIMEOUT_S) == 128 + number
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def test_fetch_runs_maven_once_for_all_until_the_pom_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'echo ran >> "$HERE/calls"; for last; do :; done; mkdir "${last#*=}"; touch "${last#*=}/kafka.jar"'
    fake(tmp_path / "bin", "mvn", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("HERE", str(tmp_path))
    (tmp_path / "pom.xml").write_text("one")
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(tool.fetch, [tmp_path] * 4))
    assert folders == {tmp_path / ".kafka" / "lib"}
    assert (tmp_path / ".kafka" / "lib" / "kafka.jar").exists()
    assert (tmp_path / "calls").read_text() == "ran\n"
    (tmp_path / "pom.xml").write_text("two")
    tool.fetch(tmp_path)
    assert (tmp_path / "calls").read_text() == "ran\nran\n"


def test_a_fetch_that_fails_tells_the_first_error_and_leaves_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path / "bin", "mvn", "echo; echo '[ERROR] no such artefact'; echo '[ERROR] see the manual'; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    (tmp_path / "pom.xml").write_text("one")
    for _ in range(2):
        with pytest.raises(SetupError, match=r"^mvn could not fetch the broker: \[ERROR\] no such artefact$"):
            tool.fetch(tmp_path)


def test_the_classes_of_a_broker_are_laid_out_once_for_the_starts_to_come() -> None:
    lib = tool.fetch().resolve()
    made = tool.class_archive(lib).stat()
    assert made.st_size > 10_000_000
    assert tool.class_archive(lib).stat().st_mtime_ns == made.st_mtime_ns


def test_check_names_all_that_is_missing_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool.main(["check"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "apt-get install openjdk-17-jdk-headless" in told and "apt-get install maven" in told


def test_a_java_that_is_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for version, told in (("1.8.0_402", "is version 8"), ("11.0.22", "is version 11")):
        fake(tmp_path, "java", f"echo 'openjdk version \"{version}\" 2024-01-16' >&2")
        with pytest.raises(SetupError, match=told):
            tool.java()
    fake(tmp_path, "java", "echo 'openjdk version \"21\" 2023-09-19' >&2")
    assert tool.java() == str(tmp_path / "java")


def test_compose_publishes_on_loopback_only() -> None:
    ports = re.findall(r'- "(.*:9092)"', (ROOT / "compose.yaml").read_text())
    assert ports == ["127.0.0.1:9092:9092"]
