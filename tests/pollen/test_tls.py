"""Where server and gateway may meet: plain on loopback, elsewhere with all three PEM files."""

from pathlib import Path

import pytest

from pollen.tls import check_endpoint

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
