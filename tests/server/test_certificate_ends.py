"""Until when certificates and revocation lists hold, as alerts ask for it."""

from pathlib import Path

import pytest

from firmware_scripts.authority.authority import Authority
from server.certificate_ends import seconds_left

DAY_S = 86_400


def test_each_file_has_its_end_and_one_that_can_not_be_read_ends_now(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "ca", "garden", days=100)
    issued = authority.issue("server", "server", hosts=["127.0.0.1"], days=10)
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    left = seconds_left(
        {
            "ca": authority.ca,
            "certificate": issued.certificate,
            "crl": authority.crl,
            "http": None,
            "broken": broken,
            "absent": tmp_path / "absent.pem",
        }
    )
    assert left.pop("broken") == left.pop("absent") == 0
    assert left.keys() == {"ca", "certificate", "crl"}
    assert left["ca"] == pytest.approx(100 * DAY_S, abs=DAY_S)
    assert left["certificate"] == pytest.approx(10 * DAY_S, abs=DAY_S)
    assert left["crl"] > 10 * DAY_S
