"""TLS on both sides of the gateway: who is let in, renewed files, and certificates that are not valid yet."""

import datetime
import socket
import subprocess
from contextlib import contextmanager

import grpc
import pytest

from tests.gateway.bridge_server import BridgeServer
from tests.gateway.certificates import certificate

WAIT_S = 60.0


@pytest.mark.parametrize("trusted", [True, False])
def test_the_stream_is_mutual_tls_when_certificates_are_given(trusted, gateway, device, tmp_path, wait_until):
    authority = certificate(tmp_path, "ca")
    certificate(tmp_path, "server", authority)
    certificate(tmp_path, "gateway", authority if trusted else certificate(tmp_path, "other-ca"))
    pair = ((tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes())
    secure = BridgeServer(
        grpc.ssl_server_credentials([pair], (tmp_path / "ca.pem").read_bytes(), require_client_auth=True)
    )
    secure.start()
    try:
        process = gateway(
            environment={
                "POLLEN_SERVER_PORT": str(secure.port),
                **{
                    f"POLLEN_SERVER_{field.upper()}": str(tmp_path / file)
                    for field, file in (("ca", "ca.pem"), ("certificate", "gateway.pem"), ("key", "gateway.key"))
                },
            }
        )
        if trusted:
            wait_until(lambda: "is ready" in process.text, WAIT_S, "ready")
            device().publish("update", b"over TLS")
            wait_until(lambda: secure.payloads == [b"over TLS"], WAIT_S, "the update arrived")
        else:
            wait_until(
                lambda: "stream to the server lost" in process.text or "not reachable" in process.text,
                WAIT_S,
                "it is turned away",
            )
            assert secure.stream is None
    finally:
        secure.stop()


def test_the_broker_may_be_reached_over_tls(gateway, server, device, mosquitto_binary, tmp_path, wait_until):  # noqa: PLR0917
    authority = certificate(tmp_path, "ca")
    certificate(tmp_path, "broker", authority)
    certificate(tmp_path, "gateway-1", authority)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        plain, secure = one.getsockname()[1], other.getsockname()[1]
    config = tmp_path / "tls.conf"
    config.write_text(
        f"user root\nallow_anonymous true\nlistener {plain} 127.0.0.1\nlistener {secure} 127.0.0.1\n"
        f"cafile {tmp_path}/ca.pem\ncertfile {tmp_path}/broker.pem\nkeyfile {tmp_path}/broker.key\n"
        "require_certificate true\n",
        encoding="ascii",
    )
    broker = subprocess.Popen([mosquitto_binary, "-c", config], stderr=subprocess.DEVNULL)
    try:
        files = {"ca": "ca.pem", "certificate": "gateway-1.pem", "key": "gateway-1.key"}
        server.accepting = True
        process = gateway(
            limits="inflight_bytes = 1",  # it pauses after each update, mostly with the next one's start in the record
            environment={
                "POLLEN_BROKER_PORT": str(secure),
                **{f"POLLEN_BROKER_{field.upper()}": str(tmp_path / file) for field, file in files.items()},
            },
        )
        wait_until(lambda: process.ready, WAIT_S, "ready")
        sender = device(port=plain)
        # Larger and smaller than a TLS record (16 KiB), so that packets end up in the middle of one.
        updates = [bytes([number]) * (5_000 * number + 1) for number in range(60)]
        for update in updates:
            sender.client.publish("pollen/1/test/d/device-1/update", update, 1)
        wait_until(lambda: len(server.payloads) == 60, WAIT_S, "all arrived")
        assert server.payloads == updates
        assert "stays with the broker" not in process.text
    finally:
        broker.terminate()
        broker.wait(10)


@contextmanager
def _tls_broker(binary, folder):
    """A port where a broker serves TLS with `folder`'s ca.pem, broker.pem and broker.key."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "tls.conf"
    config.write_text(
        f"user root\nallow_anonymous true\nlistener {port} 127.0.0.1\ncafile {folder}/ca.pem\n"
        f"certfile {folder}/broker.pem\nkeyfile {folder}/broker.key\nrequire_certificate true\n",
        encoding="ascii",
    )
    broker = subprocess.Popen([binary, "-c", config], stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        broker.terminate()
        broker.wait(10)


def _environment(folder, port):
    files = {"ca": "ca.pem", "certificate": "gateway-1.pem", "key": "gateway-1.key"}
    return {
        "POLLEN_BROKER_PORT": str(port),
        **{f"POLLEN_BROKER_{field.upper()}": str(folder / file) for field, file in files.items()},
    }


def test_a_renewed_certificate_is_used_at_the_next_attempt(gateway, mosquitto_binary, tmp_path, wait_until):
    authority = certificate(tmp_path, "ca")
    certificate(tmp_path, "broker", authority)
    certificate(tmp_path, "gateway-1", certificate(tmp_path, "other-ca"))
    with _tls_broker(mosquitto_binary, tmp_path) as port:
        process = gateway(environment=_environment(tmp_path, port))
        wait_until(lambda: "lost" in process.text or "not reachable" in process.text, WAIT_S, "it is turned away")
        assert "subscribed at" not in process.text
        certificate(tmp_path, "gateway-1", authority)
        wait_until(lambda: process.ready, WAIT_S, "ready")


def test_it_connects_once_a_certificate_from_the_future_has_become_valid(
    gateway, mosquitto_binary, tmp_path, wait_until
):
    """A wrong clock on either side makes TLS fail for a while; nothing may remember that."""
    authority = certificate(tmp_path, "ca")
    starts = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=6)
    certificate(tmp_path, "broker", authority, starts=starts)
    certificate(tmp_path, "gateway-1", authority)
    with _tls_broker(mosquitto_binary, tmp_path) as port:
        process = gateway(environment=_environment(tmp_path, port))
        wait_until(lambda: "certificate is not yet valid" in process.text, WAIT_S, "it says why")
        wait_until(lambda: process.ready, WAIT_S, "ready")
        assert datetime.datetime.now(datetime.UTC) >= starts - datetime.timedelta(seconds=1)
