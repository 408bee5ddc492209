"""Where server and gateway may meet: plain on loopback, elsewhere with all three PEM files; who may pose as whom."""

import ssl
from pathlib import Path

import pytest

from firmware_scripts.authority.authority import Authority
from firmware_scripts.authority.certificates import Role
from pollen.broker import Broker
from pollen.tls import check_endpoint, role_uri

PEM = Path("x.pem")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_files_and_may_have_them(host: str) -> None:
    check_endpoint(host, 7070, None, None, None)
    check_endpoint(host, 7070, PEM, PEM, PEM)


def test_any_other_host_needs_all_three_files() -> None:
    check_endpoint("192.0.2.1", 7070, PEM, PEM, PEM)
    with pytest.raises(ValueError, match=r"^host = '192\.0\.2\.1' is not loopback: set ca, certificate and key"):
        check_endpoint("192.0.2.1", 7070, None, None, None)


@pytest.mark.parametrize("files", [(PEM, None, None), (None, PEM, PEM), (PEM, PEM, None)])
def test_some_of_the_files_are_refused(files: tuple[Path | None, Path | None, Path | None]) -> None:
    with pytest.raises(ValueError, match=r"^ca, certificate and key belong together"):
        check_endpoint("127.0.0.1", 7070, *files)


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=f"^port = {port} must be from 1 to 65535$"):
        check_endpoint("127.0.0.1", port, None, None, None)


def test_port_zero_is_for_those_who_ask_for_it() -> None:
    check_endpoint("127.0.0.1", 0, None, None, None, port_zero=True)
    with pytest.raises(ValueError, match="from 0 to 65535"):
        check_endpoint("127.0.0.1", -1, None, None, None, port_zero=True)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    """A TLS handshake in memory; raises what either end has against it."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=host), server.wrap_bio(up, down, server_side=True)]
    for end in (*ends, *ends):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    authority = Authority.create(tmp_path_factory.mktemp("tls") / "ca", "garden")
    for role in ("broker", "server"):
        authority.issue(role, role, hosts=["broker.example"])
    for role in ("device", "gateway", "observer"):
        authority.issue(role, role)
    return authority


def broker_with(authority: Authority, name: str) -> ssl.SSLContext:
    """What a broker that shows the certificate of `name` does."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.ca))
    context.load_cert_chain(authority.folder / "issued" / f"{name}.pem", authority.folder / "issued" / f"{name}.key")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def device_with(authority: Authority, name: str) -> ssl.SSLContext:
    """What a device or gateway that shows the certificate of `name` does."""
    issued = authority.folder / "issued"
    settings = Broker(
        host="broker.example", ca=authority.ca, certificate=issued / f"{name}.pem", key=issued / f"{name}.key"
    )
    context = settings.tls_context()
    assert context is not None
    return context


@pytest.mark.parametrize("role", ["device", "gateway", "observer"])
def test_whoever_dials_in_cant_pose_as_the_broker(authority: Authority, role: Role) -> None:
    handshake(device_with(authority, "device"), broker_with(authority, "broker"), "broker.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(device_with(authority, "device"), broker_with(authority, role), "broker.example")


@pytest.mark.parametrize("role", ["broker", "server"])
def test_who_is_dialled_cant_dial_in_as_somebody(authority: Authority, role: Role) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(device_with(authority, role), broker_with(authority, "broker"), "broker.example")


def test_a_broker_by_another_host_name_is_refused(authority: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(device_with(authority, "device"), broker_with(authority, "broker"), "other.example")


def test_devices_and_gateways_ask_for_tls_1_2_or_newer(authority: Authority) -> None:
    assert device_with(authority, "device").minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_role_is_a_uri() -> None:
    assert role_uri("gateway") == "urn:pollen:role:gateway"
