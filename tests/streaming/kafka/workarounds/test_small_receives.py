"""Receiving in large pieces returns what was sent, and the connection's end."""

from __future__ import annotations

import select
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from kafka.errors import KafkaConnectionError

from dqmstream.streaming.kafka.workarounds.small_receives import receive

SENT = bytes(range(256)) * 4096


def receive_all(sock: socket.socket) -> bytes:
    """As the client does it: wait until the socket is readable, and receive."""
    sock.setblocking(False)
    received = b""
    error = None
    while error is None:
        waiting = isinstance(sock, ssl.SSLSocket) and sock.pending()
        assert not waiting, "the kernel tells of nothing that was deciphered already"
        assert select.select([sock], [], [], 20)[0]
        data, error = receive(sock)
        received += data
    assert isinstance(error, KafkaConnectionError)
    return received


def test_all_that_was_sent_is_received_before_the_end_is_told() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def send() -> None:
            theirs.sendall(SENT)
            theirs.close()

        sender = threading.Thread(target=send)
        sender.start()
        assert receive_all(ours) == SENT
        sender.join()


def test_where_nothing_has_come_nothing_is_received_and_nothing_is_wrong() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        assert receive(ours) == (b"", None)
        theirs.sendall(b"x" * 10)
        assert receive(ours) == (b"x" * 10, None)


def test_a_connection_that_is_reset_is_told() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        data, error = receive(ours)
    assert data == b"" and isinstance(error, KafkaConnectionError)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_what_tls_has_deciphered_is_read_to_its_end(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "1",
         "-subj", "/CN=localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(certificate, key)
    client.load_verify_locations(certificate)
    ours, theirs = socket.socketpair()

    def send() -> None:
        with server.wrap_socket(theirs, server_side=True) as wrapped:
            wrapped.sendall(SENT)

    sender = threading.Thread(target=send)
    sender.start()
    with client.wrap_socket(ours, server_hostname="localhost") as wrapped:
        assert receive_all(wrapped) == SENT
    sender.join()
