"""For each alert: series under which it must fire, and others, close to those, under which it must not.

Series are promtool's notation, a sample a minute: `5x60` is a constant, `0+10x60` grows by ten a minute.
"""

from dataclasses import dataclass
from typing import Final

Series = dict[str, str]

_SERVER: Final = 'instance="s:7080"'
_MODEL: Final = 'instance="s:7080",model="weather"'
_GATEWAY: Final = 'instance="g:7081"'


@dataclass(frozen=True, slots=True)
class Case:
    """`minutes`: when it is looked at; it must not fire yet `early` minutes after the start, when `early` is given."""

    fires: Series
    quiet: Series
    minutes: int = 60
    early: int | None = None


def _both(metric: str, labels: str, fires: str, quiet: str, *, minutes: int = 60, early: int | None = None) -> Case:
    """A case of one series."""
    name = f"{metric}{{{labels}}}"
    return Case({name: fires}, {name: quiet}, minutes, early)


def _accepts(slow: str, fast: str) -> Series:
    buckets = {"1.0": fast, "10.0": slow, "+Inf": slow}
    return {f'pollen_gateway_accept_seconds_bucket{{{_GATEWAY},le="{le}"}}': text for le, text in buckets.items()}


def _staleness(up_to_50: str, up_to_500: str) -> Series:
    buckets = {"50.0": up_to_50, "500.0": up_to_500, "+Inf": up_to_500}
    name = "pollen_server_update_staleness_merges_bucket"
    return {f'{name}{{{_MODEL},le="{le}"}}': text for le, text in buckets.items()}


def _merges(text: str) -> Series:
    return {f"pollen_server_merges_total{{{_MODEL}}}": text, f'up{{{_SERVER},job="pollen-server"}}': "1x60"}


def _rejections(text: str) -> Series:
    return {f'pollen_server_rejections_total{{{_MODEL},kind="norm"}}': text}


def _versions(merged: str, published: str) -> Series:
    return {
        f"pollen_server_model_version{{{_MODEL}}}": merged,
        f"pollen_server_model_published_version{{{_MODEL}}}": published,
    }


def _certificates(server: str, gateway: str) -> Series:
    return {
        f'pollen_gateway_certificate_expiry_seconds{{{_GATEWAY},peer="server"}}': gateway,
        f'pollen_server_certificate_expiry_seconds{{{_SERVER},file="crl"}}': server,
    }


def _online(count: str, merged: str) -> Series:
    return {f"pollen_server_devices_online{{{_SERVER}}}": count} | _merges(merged)


CASES: Final = {
    "PollenServerDown": _both("up", f'{_SERVER},job="pollen-server"', "1x3 0x60", "1x63", early=4),
    "PollenServerNotReady": _both("pollen_server_loop_silent_seconds", _MODEL, "60x60", "2x60", early=1),
    "PollenNoGateway": _both("pollen_server_gateways_connected", _SERVER, "0x60", "1x60", early=1),
    "PollenGatewayDown": _both("up", f'{_GATEWAY},job="pollen-gateway"', "1x3 0x60", "1x63", early=4),
    "PollenGatewayNotConnected": _both(
        "pollen_gateway_connected", f'{_GATEWAY},peer="broker"', "1x3 0x60", "1x40 0x1 1x30", early=4
    ),
    "PollenNothingMerged": Case(_online("5x60", "0+10x10 100x50"), _online("0x60", "0+10x10 100x50"), early=25),
    "PollenManyDevicesOffline": _both(
        "pollen_server_devices_online", _SERVER, "100x30 60x60", "100x30 80x60", early=33
    ),
    "PollenRejectionsRising": Case(
        _merges("0+10x60") | _rejections("0+1x60"), _merges("0+100x60") | _rejections("0+1x60"), early=5
    ),
    "PollenReceiptsSlow": Case(_accepts("0+100x60", "0+90x60"), _accepts("0+1000x60", "0+999x60"), early=9),
    "PollenCertificateExpires": Case(
        _certificates("2000000x90", "3000000x90"), _certificates("3000000x90", "3000000x90"), minutes=80, early=50
    ),
    "PollenCertificateExpired": Case(_certificates("90000x60", "0x60"), _certificates("90000x60", "90000x60"), early=4),
    "PollenDiskNearlyFull": _both(
        "pollen_server_state_free_bytes", _SERVER, "9000000000-30000000x60", "9000000000-10000x60", early=20
    ),
    "PollenDiskFull": _both("pollen_server_state_free_bytes", _SERVER, "50000000x60", "200000000x60"),
    "PollenFlood": _both("pollen_gateway_devices_limited", _GATEWAY, "1x60", "1x5 0x5 1x5 0x40", early=9),
    "PollenMessagesRefused": _both(
        "pollen_gateway_refused_messages_total", f'{_GATEWAY},reason="oversize"', "0+1x60", "0x30 1x30", early=5
    ),
    "PollenStreamsRefused": _both(
        "pollen_server_streams_refused_total", f'{_SERVER},reason="role"', "0x55 1x10", "7x65"
    ),
    "PollenStalenessHigh": Case(_staleness("0+1x60", "0+10x60"), _staleness("0+8x60", "0+10x60"), early=25),
    "PollenVersionsNotPublished": Case(_versions("0+5x60", "0x60"), _versions("0+5x60", "0+1x60"), early=9),
    "PollenHistoryLost": _both("pollen_server_history_lines_lost_total", _MODEL, "0x30 4x30", "4x60"),
}
