"""Who has no valid certificate gets in nowhere; floods and slow connections don't keep the honest devices out."""

import contextlib
import datetime
import socket
import ssl
import threading
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from firmware_scripts.authority.authority import Authority
from pollen import bridge
from pollen.bridge import Hello
from pollen.bundle import Bundle
from pollen.topics import DeviceLeaf
from tests.hostile.hostile_device import HostileDevice, update
from tests.hostile.secured_fleet import FLEET, HOST, SecuredFleet

FLOOD_PER_S = 1000
FLOOD = 3000


def stranger(fleet: SecuredFleet, tmp_path: Path) -> ssl.SSLContext:
    """A device of another authority of the same name."""
    other = Authority.create(tmp_path / "other", FLEET)
    issued = other.issue("pi-1", "device")
    context = fleet.context(None)
    context.load_cert_chain(issued.certificate, issued.key)
    return context


def nobody(fleet: SecuredFleet, _tmp_path: Path) -> ssl.SSLContext:
    return fleet.context(None)


def outdated(fleet: SecuredFleet, tmp_path: Path) -> ssl.SSLContext:
    """pi-1 with its own key, and a certificate of the right authority that ended yesterday."""
    authority = x509.load_pem_x509_certificate(fleet.authority.ca.read_bytes())
    key = serialization.load_pem_private_key((fleet.authority.ca.parent / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    own = x509.load_pem_x509_certificate(fleet.pair("pi-1")[0].read_bytes())
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(authority.subject, own.subject, own.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(yesterday - datetime.timedelta(days=1)).not_valid_after(yesterday)
    for extension in own.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    path = tmp_path / "outdated.pem"
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    context = fleet.context(None)
    context.load_cert_chain(path, fleet.pair("pi-1")[1])
    return context


@pytest.mark.parametrize("who", [stranger, nobody, outdated])
def test_who_has_no_valid_certificate_can_not_connect_to_the_broker(
    fleet: SecuredFleet, tmp_path: Path, who: Callable[[SecuredFleet, Path], ssl.SSLContext]
) -> None:
    context = who(fleet, tmp_path)
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        greet(context, fleet.broker.port)
    fleet.wait_for_honest_merges(1)


def greet(context: ssl.SSLContext, port: int) -> None:
    """Send MQTT's CONNECT and read; TLS 1.3 tells a client that it was refused only when it reads."""
    with (
        socket.create_connection((HOST, port), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=HOST) as secured,
    ):
        secured.sendall(b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03abc")
        if not secured.recv(100):
            raise EOFError


def test_old_tls_is_refused(fleet: SecuredFleet) -> None:
    context = fleet.context("pi-1")
    with warnings.catch_warnings(action="ignore"):  # that they are old is the point
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    for port in (fleet.broker.port, fleet.server_port):
        with (
            pytest.raises((ssl.SSLError, ConnectionError)),
            socket.create_connection((HOST, port), timeout=10) as connection,
        ):
            context.wrap_socket(connection, server_hostname=HOST)


def test_another_devices_client_id_takes_over_nothing(fleet: SecuredFleet, bundle_file: Path) -> None:
    fleet.authority.issue("poses", "device")
    lost = fleet.log("pi-1").count("connection lost")
    with HostileDevice("poses", fleet.broker.port, FLEET, fleet.context("poses"), client_id="pi-1") as evil:
        evil.publish("update", update(Bundle.read(bundle_file), evil.task()))
        assert evil.receipt().outcome == "merged"  # as itself
    assert fleet.merges()["poses"] == 1
    assert fleet.log("pi-1").count("connection lost") == lost


@pytest.mark.parametrize("name", ["pi-1", "gateway-9"])
def test_only_a_gateway_with_its_own_name_may_open_a_stream(fleet: SecuredFleet, name: str) -> None:
    """A device's certificate, and another gateway's, posing as gateway-1."""
    if name == "gateway-9":
        fleet.authority.issue(name, "gateway")
    certificate, key = fleet.pair(name)
    credentials = grpc.ssl_channel_credentials(
        fleet.authority.ca.read_bytes(), key.read_bytes(), certificate.read_bytes()
    )
    before = fleet.metric("server", "pollen_server_streams_refused_total")
    with grpc.secure_channel(f"{HOST}:{fleet.server_port}", credentials) as channel:
        hello = bridge.encode([Hello("gateway-1", FLEET, "x")])
        with pytest.raises(grpc.RpcError) as refusal:
            next(channel.stream_stream(bridge.METHOD)(iter([hello]), timeout=20))
    assert refusal.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    fleet.wait_for_metric("server", "pollen_server_streams_refused_total", before + 1)
    fleet.wait_for_honest_merges(1)


def test_a_flood_of_one_device_is_cut_to_its_share_and_counted(fleet: SecuredFleet, bundle_file: Path) -> None:
    fleet.authority.issue("floods", "device")
    with HostileDevice("floods", fleet.broker.port, FLEET, fleet.context("floods")) as evil:
        payload = update(Bundle.read(bundle_file), evil.task())
        flood = threading.Thread(target=evil.flood, args=("update", payload, FLOOD, FLOOD_PER_S))
        flood.start()
        fleet.wait_for_honest_merges(2)
        flood.join()
        fleet.wait_for_honest_merges(2)
    fleet.wait_for_metric("gateway", "pollen_gateway_refused_messages_total", FLOOD / 2, reason="rate")
    assert fleet.merges()["floods"] <= 1


def test_slow_connections_to_server_and_pages_keep_nobody_out(fleet: SecuredFleet) -> None:
    """Slow loris on gRPC with and without TLS, on HTTP of server and gateway, and on the broker."""
    with ExitStack() as stack:
        for port in (fleet.server_port, fleet.broker.port, fleet.server_http, fleet.gateway_http):
            for number in range(60):
                slow = stack.enter_context(socket.create_connection((HOST, port), timeout=5))
                with contextlib.suppress(OSError):
                    slow.sendall((b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")[number % 3])
        fleet.wait_for_honest_merges(3)
        for port in (fleet.server_http, fleet.gateway_http):
            with urllib.request.urlopen(f"http://{HOST}:{port}/healthz", timeout=10) as response:
                assert response.status == 200


def test_a_revoked_device_is_out_at_once_and_the_others_stay(fleet: SecuredFleet, bundle_file: Path) -> None:
    from firmware_scripts.authority import revoke_command

    fleet.authority.issue("leaves", "device")
    bundle = Bundle.read(bundle_file)
    with HostileDevice("leaves", fleet.broker.port, FLEET, fleet.context("leaves")) as evil:
        payload = update(bundle, evil.task())
        arguments = ["leaves", "--ca", str(fleet.authority.ca.parent), "--broker", str(fleet.broker.folder)]
        assert revoke_command.main(arguments) == 0
        fleet.wait_for(lambda: is_refused(evil, "vitals", b""), 10, "the revoked device may publish nothing")
        assert is_refused(evil, "update", payload)
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        greet(fleet.context("leaves"), fleet.broker.port)
    assert fleet.merges()["leaves"] == 0
    fleet.wait_for_honest_merges(2)


def is_refused(evil: HostileDevice, leaf: DeviceLeaf, payload: bytes) -> bool:
    try:
        return evil.publish(leaf, payload).value >= 0x80
    except AssertionError:  # it was disconnected instead
        return True
