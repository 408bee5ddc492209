"""The gateway's /healthz, /readyz and /metrics, and reading the settings again."""

import datetime
import json
import os
import signal
import socket
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from firmware_scripts.authority.authority import Authority
from gateway.certificate import not_after, seconds_left
from gateway.counts import Counts, Gauges
from gateway.health import BEAT_S, application
from gateway.metrics import registry
from pollen import messages
from pollen.http_service import HttpService
from pollen.http_settings import Http
from pollen.messages import Birth, Death, Session
from tests.gateway.bridge_server import BridgeServer

WAIT_S = 30.0


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _get(port, path, host=None):
    """(status, body)."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def _metrics(port):
    text = _get(port, "/metrics")[1]
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def port():
    return _free_port()


def _http(port):
    return {"POLLEN_HTTP_PORT": str(port)}


def test_readiness_names_what_is_missing_and_health_goes_on(gateway, server, mosquitto, port, wait_until):
    mosquitto.stop()
    server.stop()
    gateway(environment=_http(port))
    wait_until(lambda: _get(port, "/healthz")[0] == 200, WAIT_S, "healthy before anyone is reached")
    status, body = _get(port, "/readyz")
    assert status == 503
    assert json.loads(body)["reasons"] == ["not subscribed at the broker", "no stream to the server"]
    mosquitto.start()
    wait_until(
        lambda: json.loads(_get(port, "/readyz")[1])["reasons"] == ["no stream to the server"],
        WAIT_S,
        "broker is there",
    )
    server.start()
    wait_until(lambda: _get(port, "/readyz")[0] == 200, WAIT_S, "ready")
    mosquitto.stop()
    wait_until(lambda: _get(port, "/readyz")[0] == 503, WAIT_S, "the broker is missed")
    assert _get(port, "/healthz")[0] == 200


def test_a_loop_that_hangs_is_not_healthy():
    class Nothing(Collector):
        def collect(self):
            return []

    counts = Counts()
    gauges = Gauges(True, True, 0, 0, 0, 0, 0, 0, {})
    settings = Http(port=1)
    service = HttpService(
        application(counts, lambda: gauges, registry(Nothing()), settings.hosts), replace(settings, port=0)
    )
    with service:
        assert _get(service.port, "/healthz")[0] == 200
        counts.beat_at -= BEAT_S + 1.0
        status, body = _get(service.port, "/healthz")
    assert status == 503
    assert "has not come round for 31 s" in json.loads(body)["reasons"][0]


def test_a_page_elsewhere_cant_read_it_under_its_own_name(gateway, port, wait_until):
    gateway(environment=_http(port))
    wait_until(lambda: _get(port, "/healthz")[0] == 200, WAIT_S, "up")
    assert _get(port, "/metrics", host="evil.example")[0] == 400
    assert _get(port, "/nothing")[0] == 404


def test_metrics_tell_what_was_carried_refused_and_waits(gateway, server, device, port, wait_until):
    one, two = device("device-1"), device("device-2")
    one.publish("state", messages.encode(Birth(Session(bytes(8), 1), software="x")), retain=True)
    two.publish("state", messages.encode(Death(Session(bytes(8), 1), "stopped")), retain=True)
    process = gateway(environment=_http(port), limits="update_bytes = 1000\nupload_burst = 5\nuploads_per_s = 0.001")
    wait_until(lambda: process.ready, WAIT_S, "ready")
    for number in range(8):
        one.publish("update", bytes(100 + number))
    two.publish("update", bytes(1001))
    two.publish("vitals", b"v", qos=0)
    wait_until(lambda: len(server.payloads) == 6, WAIT_S, "what passes has arrived")
    one.publish("result", b"over as well")
    wait_until(lambda: _metrics(port)["pollen_gateway_refused_messages_total", "rate"] == 4, WAIT_S, "four refused")
    now = _metrics(port)
    assert now["pollen_gateway_received_messages_total", "update"] == 9
    assert now["pollen_gateway_received_bytes_total", "update"] == sum(range(100, 108)) + 1001
    assert now["pollen_gateway_refused_messages_total", "oversize"] == 1
    assert now["pollen_gateway_uploads_sent_total",] == 6
    assert now["pollen_gateway_uploads_accepted_total",] == 0
    assert now["pollen_gateway_in_flight_bytes",] > 500
    assert now["pollen_gateway_connected", "broker"] == now["pollen_gateway_connected", "server"] == 1
    assert (now["pollen_gateway_devices_known",], now["pollen_gateway_devices_online",]) == (2, 1)
    assert now["pollen_gateway_devices_limited",] == 1
    assert now["process_resident_memory_bytes",] > 1e7
    assert process.text.count("device-1 sends more than limits allow") == 1

    server.stream.accept(*server.stream.uploads)
    wait_until(lambda: _metrics(port)["pollen_gateway_uploads_accepted_total",] == 6, WAIT_S, "all accepted")
    now = _metrics(port)
    assert now["pollen_gateway_accept_seconds_count",] == now["pollen_gateway_accept_seconds_bucket", "+Inf"] == 6
    assert now["pollen_gateway_in_flight_uploads",] == now["pollen_gateway_in_flight_bytes",] == 0


def test_metrics_follow_prometheus_conventions(gateway, port, wait_until):
    gateway(environment=_http(port))
    wait_until(lambda: _get(port, "/metrics")[0] == 200, WAIT_S, "up")
    for family in text_string_to_metric_families(_get(port, "/metrics")[1]):
        assert family.name.startswith(("pollen_gateway_", "process_"))
        assert family.documentation
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_sighup_takes_over_limits_and_names_what_needs_a_restart(gateway, server, device, tmp_path, port, wait_until):  # noqa: PLR0917
    sender = device()
    process = gateway(environment=_http(port), limits="update_bytes = 100")
    wait_until(lambda: process.ready, WAIT_S, "ready")
    sender.publish("update", bytes(200))
    wait_until(lambda: server.stream.uploads, WAIT_S, "the first arrived")
    assert server.stream.uploads[0].leaf == "oversize"
    config = tmp_path / "gateway-1.toml"
    before = config.read_text()
    config.write_text(before.replace("update_bytes = 100", "update_bytes = 1000").replace('fleet = "', 'fleet = "x'))
    os.kill(process.process.pid, signal.SIGHUP)
    wait_until(lambda: "settings reloaded: limits.update_bytes" in process.text, WAIT_S, "reloaded")
    assert "only a restart takes it over: fleet" in process.text
    sender.publish("update", bytes(200))
    wait_until(lambda: len(server.stream.uploads) == 2, WAIT_S, "the second arrived")
    assert server.stream.uploads[1].leaf == "update"

    config.write_text(before + "nonsense = 1\n")
    os.kill(process.process.pid, signal.SIGHUP)
    wait_until(lambda: "settings not reloaded" in process.text, WAIT_S, "a wrong file is refused")
    sender.publish("update", bytes(200))
    wait_until(lambda: len(server.stream.uploads) == 3, WAIT_S, "it goes on as before")


def test_sighup_moves_it_to_another_server_and_receive_maximum(gateway, server, device, tmp_path, wait_until):
    sender = device()
    process = gateway()
    wait_until(lambda: process.ready, WAIT_S, "ready")
    sender.publish("update", b"1")
    wait_until(lambda: server.payloads == [b"1"], WAIT_S, "the first server has it")
    other = BridgeServer()
    other.start()
    try:
        config = tmp_path / "gateway-1.toml"
        text = config.read_text().replace(f"port = {server.port}", f"port = {other.port}")
        config.write_text(text + "receive_maximum = 1\n")
        os.kill(process.process.pid, signal.SIGHUP)
        wait_until(lambda: other.payloads, WAIT_S, "what was not accepted goes to the other server")
        assert set(other.payloads) == {b"1"}
        for update in (b"2", b"3"):
            sender.publish("update", update)
        other.accepting = True
        other.stream.accept(*other.stream.uploads)
        wait_until(lambda: set(other.payloads) == {b"1", b"2", b"3"}, WAIT_S, "all arrived")
    finally:
        other.stop()


def test_a_certificates_end_is_read_from_its_file(tmp_path):
    authority = Authority.create(tmp_path / "authority", "test")
    issued = authority.issue("gateway-1", "gateway", days=30)
    left = seconds_left(issued.certificate)
    assert left == pytest.approx(30 * 86400, abs=2 * 86400)
    certificate = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert not_after(der) == certificate.not_valid_after_utc
    assert not_after(der) == issued.not_after.astimezone(datetime.UTC).replace(microsecond=0)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_file_that_is_no_certificate_has_no_end(content, tmp_path):
    file = tmp_path / "wrong.pem"
    file.write_bytes(content)
    assert seconds_left(file) is None
    assert seconds_left(tmp_path / "missing.pem") is None
