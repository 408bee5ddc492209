"""Who may open a gateway's stream over TLS: real gRPC, certificates of a real authority."""

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from firmware_scripts.authority import certificates
from firmware_scripts.authority.authority import Authority, Issued
from gateway.settings import Server
from gateway.uplink import Uplink
from pollen import bridge
from pollen.bridge import Accepted, Frame, Hello, Upload
from pollen.errors import SettingsError
from server.bridge_service import BridgeService, Listen, Stream, serve
from server.refusals import Refusals
from tests.pollen.frames import encoded

FLEET = "garden"
WAIT_S = 30.0


class Bridge:
    """The server's end, which accepts every upload at once."""

    def __init__(self, authority: Authority, *, handshake_s: float = 10.0) -> None:
        self.authority = authority
        self.issued = authority.issue("server", "server", hosts=["127.0.0.1", "localhost"], replace=True)
        self.open: list[Stream] = []
        listen = Listen(
            port=0,
            ca=authority.ca,
            certificate=self.issued.certificate,
            key=self.issued.key,
            crl=authority.crl,
        )
        self.service = BridgeService(
            FLEET, listen, opened=self.open.append, received=self._accept, closed=self.open.remove
        )
        self.service.refusals = Refusals(handshake_s)
        self.server, self.port = serve(self.service, listen)

    @staticmethod
    def _accept(stream: Stream, frame: Frame) -> None:
        if isinstance(frame, Upload):
            stream.put(Accepted((frame.delivery,)))

    def refused(self) -> dict[str, int]:
        """Counts by reason, without the zeros."""
        return {reason: count for reason, count in self.service.refusals.counts().items() if count}


class Gateway:
    """One dial with a certificate; `answers` sends an upload and waits for its acceptance."""

    def __init__(self, port: int, ca: Path, issued: Issued | None, name: str = "gateway-1", host: str = "127.0.0.1"):
        pair = (issued.key.read_bytes(), issued.certificate.read_bytes()) if issued else (None, None)
        self._channel = grpc.secure_channel(
            f"{host}:{port}",
            grpc.ssl_channel_credentials(ca.read_bytes(), *pair),
            [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)],
        )
        self._up: SimpleQueue[Frame | None] = SimpleQueue()
        self._up.put(Hello(name, FLEET, "test"))
        self._call = self._channel.stream_stream(bridge.METHOD)(encoded(self._up), timeout=WAIT_S)
        self._deliveries = 0

    def answers(self) -> bool:
        self._deliveries += 1
        self._up.put(Upload(self._deliveries, "pi-01", "update", b"x"))
        return bridge.decode(next(self._call)) == [Accepted((self._deliveries,))]

    def ended(self) -> tuple[grpc.StatusCode, str]:
        """How the call ended; waits for that."""
        try:
            for _ in self._call:
                pass
        except grpc.RpcError:
            pass
        return self._call.code(), self._call.details()

    def close(self) -> None:
        self._up.put(None)
        self._call.cancel()
        self._channel.close()


Dial = Callable[..., Gateway]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", FLEET)


@pytest.fixture
def server(authority: Authority) -> Iterator[Bridge]:
    running = Bridge(authority, handshake_s=1.0)
    yield running
    running.server.stop(None).wait()


@pytest.fixture
def dial(server: Bridge) -> Iterator[Dial]:
    """`dial(issued, name)`: a gateway that is closed at the end."""
    made: list[Gateway] = []

    def dialled(issued: Issued | None, name: str = "gateway-1", *, ca: Path | None = None, port: int = 0) -> Gateway:
        made.append(Gateway(port or server.port, ca or server.authority.ca, issued, name))
        return made[-1]

    yield dialled
    for gateway in made:
        gateway.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_only_gateways_of_the_fleets_authority_get_a_stream(
    authority: Authority, server: Bridge, dial: Dial, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "pollen.server")
    honest = dial(authority.issue("gateway-1", "gateway"))
    assert honest.answers()
    denied = grpc.StatusCode.PERMISSION_DENIED

    for role in ("device", "observer"):
        code, text = dial(authority.issue(f"a-{role}", role), "gateway-1").ended()
        assert (code, text.partition(",")[0]) == (denied, f"the certificate of 'a-{role}' is a {role}'s")
    code, text = dial(authority.issue("gateway-2", "gateway"), "gateway-1").ended()
    assert code is denied
    assert text == "gateway 'gateway-1' shows the certificate of 'gateway-2'; names must be equal"
    revoked = authority.issue("gateway-3", "gateway")
    authority.revoke("gateway-3")
    assert dial(revoked, "gateway-3").ended() == (denied, "the certificate of 'gateway-3' is revoked; issue another")
    assert server.refused() == {"role": 2, "name": 1, "revoked": 1}

    # What follows doesn't get through the handshake.
    other = Authority.create(tmp_path / "other", FLEET)
    expired = _issued(authority, "gateway-1", "gateway", now=datetime.now(UTC) - timedelta(hours=3))
    for issued in (None, other.issue("gateway-1", "gateway"), expired, server.issued):
        assert dial(issued).ended()[0] is grpc.StatusCode.UNAVAILABLE
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        wait_until(lambda: server.refused().get("handshake") == 5)

    assert honest.answers()
    assert [stream.gateway for stream in server.open] == ["gateway-1"]
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("gateway refused from ipv4:127.0.0.1:") for line in lines) == 4
    assert any(line.startswith("connections refused by TLS") for line in lines)
    assert not any("\n" in line for line in lines)


def _issued(authority: Authority, name: str, role: certificates.Role, **how: Any) -> Issued:
    """A certificate as `Authority.issue` doesn't make them."""
    key = certificates.new_key()
    issuer = serialization.load_pem_private_key((authority.folder / "ca.key").read_bytes(), None)
    certificate = certificates.certificate(
        (authority.certificate, issuer),
        key.public_key(),
        name,
        role,
        **{"now": datetime.now(UTC), "valid": timedelta(hours=2)} | how,
    )
    paths = authority.folder / f"odd-{name}.pem", authority.folder / f"odd-{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(certificates.pem_of(key))
    return Issued(name, role, *paths, certificate.serial_number, certificate.not_valid_after_utc)


def test_a_stream_without_a_hello_of_this_fleet_is_counted(server: Bridge, authority: Authority) -> None:
    issued = authority.issue("gateway-1", "gateway")
    credentials = grpc.ssl_channel_credentials(
        authority.ca.read_bytes(), issued.key.read_bytes(), issued.certificate.read_bytes()
    )
    with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
        for first in (b"nonsense", bridge.encode([Hello("gateway-1", "another", "test")]), bridge.encode([])):
            with pytest.raises(grpc.RpcError) as refused:
                next(channel.stream_stream(bridge.METHOD)(iter([first]), timeout=WAIT_S))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert server.refused() == {"hello": 3}


def test_a_revoked_gateways_open_stream_is_closed(server: Bridge, authority: Authority, dial: Dial) -> None:
    staying = dial(authority.issue("gateway-1", "gateway"))
    going_files = authority.issue("gateway-2", "gateway")
    going = dial(going_files, "gateway-2")
    assert staying.answers()
    assert going.answers()
    authority.revoke("gateway-2")
    going.ended()
    assert dial(going_files, "gateway-2").ended()[0] is grpc.StatusCode.PERMISSION_DENIED
    assert staying.answers()
    assert server.refused() == {"revoked": 1}


def test_a_damaged_or_foreign_revocation_list_leaves_the_last_one_in_force(
    server: Bridge, authority: Authority, dial: Dial, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    revoked = authority.issue("gateway-2", "gateway")
    authority.revoke("gateway-2")
    assert "is revoked" in dial(revoked, "gateway-2").ended()[1]
    foreign = Authority.create(tmp_path / "other", FLEET)
    for content in (b"", foreign.crl.read_bytes()):
        authority.crl.write_bytes(content)
        assert "is revoked" in dial(revoked, "gateway-2").ended()[1]
    assert dial(authority.issue("gateway-1", "gateway")).answers()
    told = [record.getMessage() for record in caplog.records if "the list read before holds" in record.getMessage()]
    assert len(told) == 2


def test_a_revocation_list_that_cant_be_used_ends_the_start(authority: Authority, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path / "other", FLEET).crl
    for crl, text in (
        (foreign, f"listen.crl = {foreign}: is not signed by listen.ca; take both from `pollen ca`"),
        (tmp_path / "none.pem", f"listen.crl or ca: [Errno 2] No such file or directory: '{tmp_path}/none.pem'"),
        (authority.ca, f"listen.crl = {authority.ca}: no revocation list, or ca no certificate, in PEM"),
    ):
        listen = Listen(ca=authority.ca, certificate=authority.ca, key=authority.ca, crl=crl)
        with pytest.raises(SettingsError) as refused:
            BridgeService(FLEET, listen, opened=print, received=print, closed=print)
        assert str(refused.value) == text


def test_a_crl_without_a_ca_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^crl goes with ca, certificate and key"):
        Listen(crl=Path("crl.pem"))


def test_a_renewed_server_certificate_is_shown_to_new_connections(
    server: Bridge, authority: Authority, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pollen.server")
    gateway = authority.issue("gateway-1", "gateway")
    staying = dial(gateway)
    assert staying.answers()
    assert _serial_shown(server, authority, gateway) == server.issued.serial
    renewed = authority.issue("server", "server", hosts=["127.0.0.1"], replace=True)
    assert _serial_shown(server, authority, gateway) == renewed.serial
    assert dial(gateway).answers()
    assert staying.answers()

    # Half a renewal: what was read before is used on.
    renewed.key.write_bytes(gateway.key.read_bytes())
    assert _serial_shown(server, authority, gateway) == renewed.serial
    assert any("the certificate read before is still used" in record.getMessage() for record in caplog.records)


def _serial_shown(server: Bridge, authority: Authority, client: Issued) -> int:
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(client.certificate, client.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", server.port)) as connection,
        context.wrap_socket(connection, server_hostname="127.0.0.1") as secured,
    ):
        return int((secured.getpeercert() or {})["serialNumber"], 16)


def test_a_gateway_takes_only_a_servers_certificate_and_reads_its_own_at_each_dial(
    authority: Authority, server: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    issued = authority.issue("gateway-1", "gateway")
    # A device's own certificate has no host; this one has, and still isn't a server's.
    posing = _issued(authority, "pi-01", "device", hosts=["127.0.0.1"])
    pair = [(posing.key.read_bytes(), posing.certificate.read_bytes())]
    impostor = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    port = impostor.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair, authority.ca.read_bytes(), True))
    impostor.start()
    files = {"ca": authority.ca, "certificate": issued.certificate, "key": issued.key}
    uplink = Uplink(Server(port=port, **files), Hello("gateway-1", FLEET, "test"), lambda: None)
    uplink.start()
    try:
        wait_until(lambda: any("unsupported certificate purpose" in line for line in caplog.messages))
        assert server.open == []
        uplink.change(Server(port=server.port, **files))
        wait_until(lambda: len(server.open) == 1)

        authority.issue("gateway-1", "gateway", replace=True)  # which revokes the one before
        wait_until(lambda: server.open == [])
        wait_until(lambda: len(server.open) == 1)
    finally:
        uplink.stop()
        impostor.stop(None).wait()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "taken"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
def test_tls_is_1_2_or_newer(server: Bridge, authority: Authority, version: ssl.TLSVersion, taken: bool) -> None:
    issued = authority.issue("gateway-1", "gateway")
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(issued.certificate, issued.key)
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL itself would refuse to try
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        if taken:
            with context.wrap_socket(connection, server_hostname="127.0.0.1") as secured:
                assert secured.version() == version.name.replace("_", ".")
        else:
            with pytest.raises(OSError, match=r"EOF|reset|alert|VERSION"):
                context.wrap_socket(connection, server_hostname="127.0.0.1")
