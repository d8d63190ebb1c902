"""A real Apache Kafka broker on this machine, without Docker: started in seconds, killed at will, gone at the end.

    with Broker() as broker:
        ...  # broker.bootstrap is host:port
        broker.kill()  # SIGKILL
        broker.start()  # same port, same data

    python -m tools.broker run -- CMD...   # CMD finds it in DQMSTREAM_BOOTSTRAP

It needs a JDK 17 or newer, and Maven once, which fetches what pom.xml names into .kafka/lib.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
JAVA_VERSION = 17
GET_JAVA = "install a JDK 17 or newer, e.g. apt-get install openjdk-17-jdk-headless"
GET_MAVEN = "install Maven, e.g. apt-get install maven"
FETCH_TIMEOUT_S = 600
FORMAT_TIMEOUT_S = 60
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
HOST = "127.0.0.1"
NOWHERE = "nowhere.invalid"
PORTS = range(15000, 30000)
"""Below the ports that Linux and macOS lend to outgoing connections: one of those could take the port of a killed broker."""

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOST:PLAINTEXT",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # Tests wait for the end of the sessions of workers that they kill.
    "group.min.session.timeout.ms": "1000",
    # A live producer would make a deleted topic again.
    "auto.create.topics.enable": "false",
    # A killed broker that comes back waits until the session of its former life ends.
    "broker.session.timeout.ms": "1000",
    "broker.heartbeat.interval.ms": "200",
}

JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true")

LOGGING = """\
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=OUT
appender.out.type=Console
appender.out.name=OUT
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1}: %m%n%ex
"""

STARTED = b"Kafka Server started"


class SetupError(RuntimeError):
    """The broker cannot be had on this machine: one line that says why and what to do."""


def java() -> str:
    """Path of a java that is new enough. Raises SetupError."""
    path = shutil.which("java")
    if path is None:
        raise SetupError(f"there is no java: {GET_JAVA}")
    told = subprocess.run([path, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', told)
    if version is None or int(version[1]) < JAVA_VERSION:
        raise SetupError(f"{path} is version {version[1] if version else 'unknown'}: {GET_JAVA}")
    return path


def maven() -> str:
    """Path of mvn. Raises SetupError."""
    path = shutil.which("mvn")
    if path is None:
        raise SetupError(f"there is no mvn: {GET_MAVEN}")
    return path


def check() -> str:
    """Where java and mvn are, in one line. Raises SetupError, which names all that is missing."""
    found, missing = [], []
    for look in (java, maven):
        try:
            found.append(look())
        except SetupError as error:
            missing.append(str(error))
    if missing:
        raise SetupError("; ".join(missing))
    return f"found {' and '.join(found)}"


def fetch(root: Path = ROOT) -> Path:
    """Folder of the jars that root/pom.xml names, fetched unless they are there. Raises SetupError.

    Safe in many processes at once: one fetches, the others wait for it. Maven is needed for the first time only.
    """
    pom = root / "pom.xml"
    wanted = hashlib.sha256(pom.read_bytes()).hexdigest()
    home = root / ".kafka"
    lib, part, stamp = home / "lib", home / "lib.part", home / "stamp"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return lib
        stamp.unlink(missing_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        command = [maven(), "-q", "-B", "-Dstyle.color=never", "-f", str(pom), "dependency:copy-dependencies"]
        code, told = _finish([*command, f"-DoutputDirectory={part}"], FETCH_TIMEOUT_S)
        if code != 0:
            raise SetupError(f"mvn could not fetch the broker: {_first_error(told)}")
        shutil.rmtree(lib, ignore_errors=True)
        part.rename(lib)
        stamp.write_text(wanted)  # last: it says that all of lib is there
    return lib


def class_archive(lib: Path) -> Path:
    """Archive of the classes that a broker loads: with it a start takes half of the CPU time.

    Safe in many processes at once: the first to ask makes it, by a broker that is started and stopped. A Java that cannot
    make one leaves it empty, and each Java ignores an archive that is not its own.
    """
    archive, part = lib / "classes.jsa", lib / "classes.part"
    with (lib.parent / "classes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            part.unlink(missing_ok=True)
            with Broker(make_archive=part):
                pass
            part.touch()
            part.rename(archive)
    return archive


class Broker:
    """One broker with its own data, in a with block. Raises SetupError when it cannot be started.

    settings: server settings that replace or join SETTINGS. At the end the data is removed. The log is kept, and its path
    told, if the block ends with an exception, if the broker ended by itself, or if keep_log was set. On Linux the broker
    dies with this process, however that ends. make_archive: file in which it leaves its classes when it is stopped.
    """

    def __init__(self, settings: Mapping[str, str] | None = None, *, make_archive: Path | None = None) -> None:
        self.keep_log = False
        self._make_archive = make_archive
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._java, self._lib = java(), fetch().resolve()
        self._class_path = ":".join(str(jar) for jar in sorted(self._lib.glob("*.jar")))  # an archive belongs to one order
        self._archive = None if self._make_archive else class_archive(self._lib)
        self._port, self._lost_port, controller = _free_ports(3)
        self._home = Path(tempfile.mkdtemp(prefix="dqmstream-broker-"))
        self._forker = ThreadPoolExecutor(1, "broker")
        try:
            self._configure(controller)
            self._format()
            self.start()
        except BaseException:
            self.keep_log = True
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        ended_by_itself = self._process is not None and not self.running
        self.keep_log |= kind is not None or ended_by_itself
        self._close()

    @property
    def bootstrap(self) -> str:
        """host:port for clients; it stays the same through kill and start."""
        return f"{HOST}:{self._port}"

    @property
    def lost_bootstrap(self) -> str:
        """host:port of a listener that answers, and says that the broker is at NOWHERE."""
        return f"{HOST}:{self._lost_port}"

    @property
    def data(self) -> Path:
        """Folder of the topics' segment files."""
        return self._home / "data"

    @property
    def log(self) -> Path:
        return self._home / "broker.log"

    @property
    def pid(self) -> int:
        """Of the running broker. Raises RuntimeError when it is stopped."""
        if self._process is None:
            raise RuntimeError("the broker is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it on the data and port that it had, and wait until it serves. Raises SetupError if it does not."""
        if self._process is not None:
            raise RuntimeError("the broker is started already: stop or kill it first")
        written = self.log.stat().st_size
        with self.log.open("ab") as log:
            # The kernel takes the thread that forks for the parent to die with: ours lives until the end of the block.
            self._process = self._forker.submit(
                subprocess.Popen,
                self._command("kafka.Kafka", str(self._home / "server.properties"), make_archive=self._make_archive),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the one who uses the broker, who then stops it
                preexec_fn=_die_with_parent,
            ).result()
        self._wait_until_up(written)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, wait, then SIGKILL. Does nothing if it is stopped."""
        self._end(signal.SIGTERM)

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(FETCH_TIMEOUT_S if self._make_archive else STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _close(self) -> None:
        self.stop()
        self._forker.shutdown()
        if not self.keep_log:
            shutil.rmtree(self._home)
            return
        shutil.rmtree(self.data, ignore_errors=True)
        print(f"the broker's log is kept in {self.log}", file=sys.stderr)

    def _configure(self, controller: int) -> None:
        listeners = f"PLAINTEXT://{HOST}:{self._port}"
        settings = SETTINGS | {
            "controller.quorum.bootstrap.servers": f"{HOST}:{controller}",
            "listeners": f"{listeners},LOST://{HOST}:{self._lost_port},CONTROLLER://{HOST}:{controller}",
            "advertised.listeners": f"{listeners},LOST://{NOWHERE}:9092",
            "log.dirs": str(self.data),
        }
        lines = [f"{name}={value}\n" for name, value in (settings | self._settings).items()]
        (self._home / "server.properties").write_text("".join(lines))
        (self._home / "log4j2.properties").write_text(LOGGING)
        self.log.touch()

    def _format(self) -> None:
        # A first byte of zero makes the id begin with A: an id that begins with a dash would be read as an option.
        cluster = base64.urlsafe_b64encode(b"\0" + secrets.token_bytes(15)).decode().rstrip("=")
        arguments = ("format", "--standalone", "-t", cluster, "-c", str(self._home / "server.properties"))
        code, told = _finish(self._command("kafka.tools.StorageTool", *arguments), FORMAT_TIMEOUT_S)
        self.log.write_text(told)
        if code != 0:
            raise SetupError(f"the broker's storage could not be formatted: {self._reason(0)}")

    def _command(self, main: str, *arguments: str, make_archive: Path | None = None) -> list[str]:
        options = [*JVM, f"-Dlog4j2.configurationFile={self._home / 'log4j2.properties'}"]
        if make_archive:
            options.append(f"-XX:ArchiveClassesAtExit={make_archive}")
        elif self._archive:
            options.append(f"-XX:SharedArchiveFile={self._archive}")
        return [self._java, *options, "-cp", self._class_path, main, *arguments]

    def _wait_until_up(self, written: int) -> None:
        """Until it says so and answers; it accepts connections before it can serve them, so the log is asked first."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while STARTED not in self._logged_since(written):
            if not self.running:
                self._process = None
                raise SetupError(f"the broker ended while it started: {self._reason(written)}")
            if time.monotonic() > deadline:
                raise SetupError(f"the broker did not start in {START_TIMEOUT_S} s: {self._reason(written)}")
            time.sleep(0.05)
        _handshake(self._port)

    def _logged_since(self, written: int) -> bytes:
        with self.log.open("rb") as log:
            log.seek(written)
            return log.read()

    def _reason(self, written: int) -> str:
        return f"{_first_error(self._logged_since(written).decode(errors='replace'))} (log: {self.log})"


def run(command: list[str]) -> int:
    """Run the command with a broker beside it, and return its exit code (128 + n for signal n). Raises SetupError.

    SIGINT and SIGTERM go to the command; the broker is stopped when the command has ended.
    """
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        if child is None:
            raise SystemExit(128 + number)
        if number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty():
            return  # a terminal sends Ctrl-C to the command too, and twice may mean: at once
        child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    if shutil.which(command[0]) is None:
        raise SetupError(f"there is no command {command[0]}")
    with Broker() as broker:
        print(f"broker on {broker.bootstrap}", file=sys.stderr)
        child = subprocess.Popen(command, env=os.environ | {"DQMSTREAM_BOOTSTRAP": broker.bootstrap})
        code = child.wait()
        broker.keep_log = code != 0
    return code if code >= 0 else 128 - code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.broker", description="A real Kafka broker, without Docker.")
    todo = parser.add_subparsers(dest="todo", required=True)
    todo.add_parser("check", help="say whether java and mvn are there")
    todo.add_parser("fetch", help="fetch the broker's jars")
    runner = todo.add_parser("run", help="run a command with a broker, whose address is in DQMSTREAM_BOOTSTRAP")
    runner.add_argument("command", nargs="+", metavar="CMD", help="after --")
    options = parser.parse_args(arguments)
    try:
        if options.todo == "run":
            return run(options.command)
        print(check() if options.todo == "check" else f"the jars are in {fetch()}")
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _first_error(text: str) -> str:
    """The line that most likely tells the reason: the first cause, or else the first error, or else the last line."""
    for pattern in (r"^Caused by: .*", r"^(?:\S+Exception|Exception|Error)\b.*|^.*\b(?:ERROR|FATAL)\b.*"):
        if found := re.search(pattern, text, re.MULTILINE):
            return found[0].strip()
    return text.strip().rpartition("\n")[2] or "it said nothing"


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            if port not in found and probe.connect_ex((HOST, port)) != 0:
                found.append(port)
    return found


def _handshake(port: int) -> None:
    """Ask for ApiVersions (key 18, version 0, without a client id). Raises SetupError unless the answer has no error."""
    request = struct.pack(">hhih", 18, 0, 1, -1)
    with socket.create_connection((HOST, port), timeout=START_TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        answer = connection.recv(10, socket.MSG_WAITALL)
    if len(answer) < 10 or struct.unpack(">iih", answer)[1:] != (1, 0):
        raise SetupError(f"what listens on {HOST}:{port} does not answer as a Kafka broker")


def _finish(command: list[str], timeout_s: float) -> tuple[int, str]:
    """Exit code and output of a command. Raises SetupError if it takes too long."""
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"{command[0]} did not end in {timeout_s} s: try again") from error
    return ended.returncode, ended.stdout.decode(errors="replace")


_LIBC = ctypes.CDLL(None)  # loaded here, since little is safe between fork and exec
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
