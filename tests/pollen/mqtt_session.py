"""A stock MQTT 5 client that remembers what it was told."""

import ssl

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

WAIT_S = 20.0
NOT_AUTHORISED = 0x87


def context_of(authority, name):
    """The TLS context of who has the certificate `name`; None for that: of who has no certificate."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    if name is not None:
        context.load_cert_chain(
            authority.folder / "issued" / f"{name}.pem", authority.folder / "issued" / f"{name}.key"
        )
    return context


class Session:
    """`tls`: an ssl.SSLContext, for certificates; else `account`: user name and password. `connected` has (reason code,
    properties) of every CONNACK, `received` the newest payload of each topic, `ended` why the connection did.

    With `receive_maximum` it acknowledges nothing that it receives."""

    def __init__(
        self,
        port,
        wait_until,
        *,
        account=None,
        tls=None,
        client_id="",
        expiry_s=0,
        keepalive_s=60,
        will=None,
        receive_maximum=None,
    ):
        self.received = {}
        self.messages = 0
        self.connected = []
        self.ended = []
        self._wait_until = wait_until
        self._reasons = {}
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=receive_maximum is not None,
        )
        if account is not None:
            self.client.username_pw_set(*account)
        if tls is not None:
            self.client.tls_set_context(tls)
        if will is not None:
            self.client.will_set(will, b"gone", 1)
        self.client.on_connect = lambda _c, _u, _f, reason, properties: self.connected.append(
            (reason.value, properties)
        )
        self.client.on_disconnect = lambda _c, _u, _f, reason, _p: self.ended.append(reason)
        self.client.on_publish = lambda _c, _u, mid, reason, _p: self._reasons.update({mid: reason.value})
        self.client.on_subscribe = lambda _c, _u, mid, reasons, _p: self._reasons.update({mid: reasons[0].value})
        self.client.on_message = self._take
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = expiry_s
        if receive_maximum is not None:
            properties.ReceiveMaximum = receive_maximum
        try:
            self.client.connect("127.0.0.1", port, keepalive_s, clean_start=expiry_s == 0, properties=properties)
        except (ssl.SSLError, ConnectionError) as error:
            self.ended.append(error)
            return
        self.client.loop_start()
        wait_until(lambda: self.connected or self.ended, WAIT_S, "CONNACK")

    def publish(self, topic, payload=b"x", *, retain=False):
        """The PUBACK's reason code."""
        mid = self.client.publish(topic, payload, 1, retain).mid
        self._wait_until(lambda: mid in self._reasons, WAIT_S, f"PUBACK for {topic}")
        return self._reasons[mid]

    def publish_all(self, topic, payloads):
        """The PUBACKs' reason codes, without waiting for one before sending the next."""
        mids = [self.client.publish(topic, payload, 1).mid for payload in payloads]
        self._wait_until(lambda: all(mid in self._reasons for mid in mids), WAIT_S, f"PUBACKs for {topic}")
        return {self._reasons[mid] for mid in mids}

    def subscribe(self, topic):
        """The SUBACK's reason code."""
        mid = self.client.subscribe(topic, options=SubscribeOptions(qos=1))[1]
        self._wait_until(lambda: mid in self._reasons, WAIT_S, f"SUBACK for {topic}")
        return self._reasons[mid]

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()

    def _take(self, _client, _userdata, message):
        self.messages += 1
        self.received[message.topic] = message.payload
