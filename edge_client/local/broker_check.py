"""The doctor's look at the broker: its name, its port, its certificate, and whether it takes this device."""

import queue
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Final

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_client.local.finding import Finding
from edge_client.settings import EdgeSettings
from pollen.errors import SettingsError

ANSWER_S: Final = 10.0
DAY_S: Final = 86400.0
CERTIFICATE_DAYS: Final = 14


def broker_findings(settings: EdgeSettings, *, connect: bool) -> Iterator[Finding]:
    """What can be said of the broker. `connect`: also log in, which would take the session of an agent that runs."""
    broker = settings.broker
    where = f"{broker.host}:{broker.port}"
    try:
        connection = socket.create_connection((broker.host, broker.port), timeout=ANSWER_S)
    except socket.gaierror as error:
        yield Finding("broker", False, f"{broker.host}: {error.strerror}", "check broker.host and the name server")
        return
    except OSError as error:
        fix = "is the broker running, is the port right, does a firewall stand between?"
        yield Finding("broker", False, f"{where}: {error.strerror or error}", fix)
        return
    with connection:
        yield Finding("broker", True, f"{where} can be reached")
        try:
            context = broker.tls_context()
        except SettingsError as error:
            yield Finding("tls", False, str(error), "check the paths and that this user may read them")
            return
        if context is not None:
            finding = _handshake(context, connection, broker.host)
            yield finding
            if not finding.ok:
                return
    if connect:
        yield _login(settings)


def _handshake(context: ssl.SSLContext, connection: socket.socket, host: str) -> Finding:
    try:
        with context.wrap_socket(connection, server_hostname=host) as wrapped:
            certificate = wrapped.getpeercert() or {}
            version = wrapped.version()
    except ssl.SSLCertVerificationError as error:
        fix = "check broker.ca, broker.host (it must be a name in the certificate) and this machine's clock"
        return Finding("tls", False, error.verify_message, fix)
    except OSError as error:
        return Finding("tls", False, str(error), "is it a TLS port? Mosquitto's is 8883; plain ones need no broker.ca")
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (ends - time.time()) / DAY_S
    seen = f"{version}, the broker's certificate is valid for {days:.0f} days"
    return Finding("tls", days > CERTIFICATE_DAYS, seen, "have the broker's certificate renewed")


def _login(settings: EdgeSettings) -> Finding:
    """Connect as the device, keeping its session, and leave at once."""
    broker = settings.broker
    answers: queue.Queue[str] = queue.Queue()
    # What waits in the session is left to the agent: nothing is acknowledged.
    client = Client(
        CallbackAPIVersion.VERSION2, client_id=settings.device, protocol=MQTTProtocolVersion.MQTTv5, manual_ack=True
    )
    if broker.username:
        client.username_pw_set(broker.username, broker.password)
    context = broker.tls_context()
    if context is not None:
        client.tls_set_context(context)
    client.on_connect = lambda _client, _userdata, _flags, reason, _properties: answers.put(
        str(reason) if reason.is_failure else ""
    )
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = settings.session.expiry_s
    fix = "check device, broker.username, password and certificate against the broker's accounts and access rules"
    try:
        client.connect(broker.host, broker.port, broker.keepalive_s, clean_start=False, properties=properties)
        client.loop_start()
        refusal = answers.get(timeout=ANSWER_S)
    except (OSError, ValueError) as error:
        return Finding("login", False, str(error), fix)
    except queue.Empty:
        return Finding("login", False, "no answer to CONNECT", "it must speak MQTT 5, as Mosquitto 2 does")
    finally:
        client.disconnect()
        client.loop_stop()
    return Finding("login", not refusal, refusal or f"the broker takes device {settings.device}", fix)
