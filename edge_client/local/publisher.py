"""Predictions on an MQTT topic, for those who live beside the device."""

import contextlib
import json
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

from paho.mqtt.client import Client, ConnectFlags, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_client.learning.prediction import Prediction
from edge_client.local import home_assistant
from edge_client.local.json_lines import line_of
from edge_client.sensors import Channel
from edge_client.settings import EdgeSettings
from pollen.errors import SettingsError

LOG = logging.getLogger(__name__)

RECONNECT_MAX_S: Final = 120
WAITING: Final = 32  # predictions that may wait for a broker that doesn't read; those after them are left out


class PredictionPublisher:
    """A client of its own on `[predictions] broker`, so that the fleet's broker needs no further access rules.

    Predictions go out with QoS 0 and only while there is a connection: old ones help nobody. `<topic>/availability`
    is "online", or "offline" by the last will. Raises SettingsError when the TLS files can't be used.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        chosen = settings.predictions
        self._settings = settings
        self._topic = chosen.topic or f"pollen/{settings.device}/prediction"
        self._availability = f"{self._topic}/availability"
        self._discovery = b""
        self._channels: tuple[Channel, ...] = ()
        self._only_anomalies = chosen.publish == "anomalies"
        self._was_anomaly = False
        self._sent: deque[MQTTMessageInfo] = deque(maxlen=WAITING)
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"{settings.device}-predictions",
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        if chosen.broker.username:
            client.username_pw_set(chosen.broker.username, chosen.broker.password)
        try:
            context = chosen.broker.tls_context()
        except SettingsError as error:
            raise SettingsError(f"predictions.{error}") from error
        if context is not None:
            client.tls_set_context(context)
        client.will_set(self._availability, b"offline", qos=1, retain=True)
        client.reconnect_delay_set(1, RECONNECT_MAX_S)
        client.suppress_exceptions = True
        client.on_connect = self._on_connect
        self._client = client

    def start(self) -> None:
        """Start connecting; a broker that isn't there is tried again for ever."""
        broker = self._settings.predictions.broker
        self._client.connect_async(broker.host, broker.port, broker.keepalive_s)
        self._client.loop_start()

    def describe(self, channels: Sequence[Channel], period_s: float) -> None:
        """Announce what the values mean to Home Assistant, where that is asked for."""
        if not self._settings.predictions.discovery or channels == self._channels:
            return
        self._channels = tuple(channels)
        # On a period of hours a value stays good for as long.
        expires_s = 0 if self._only_anomalies else max(60, int(10 * period_s))
        forecast = channels if self._settings.learner.target == "next" else ()
        labels = self._settings.labels.classes if self._settings.learner.target == "label" else None
        message = home_assistant.discovery(
            self._settings.device, self._settings.model, self._topic, forecast, labels=labels,
            anomalies=self._settings.anomaly.enabled, availability=self._availability, expires_s=expires_s,
        )  # fmt: skip
        self._discovery = json.dumps(message).encode()
        if self._client.is_connected():
            self._announce()

    def publish(self, prediction: Prediction) -> None:
        """Publish a prediction, or only that an anomaly has begun or ended."""
        changed = prediction.is_anomaly != self._was_anomaly
        self._was_anomaly = prediction.is_anomaly
        if (changed or not self._only_anomalies) and self._client.is_connected() and not self._is_behind():
            self._sent.append(self._client.publish(self._topic, line_of(prediction).encode(), qos=0))

    def stop(self) -> None:
        """Say that we are gone, and disconnect."""
        if self._client.is_connected():
            with contextlib.suppress(ValueError, RuntimeError):  # the connection is lost; then the last will says it
                self._client.publish(self._availability, b"offline", qos=1, retain=True).wait_for_publish(2.0)
        self._client.disconnect()
        self._client.loop_stop()

    def _is_behind(self) -> bool:
        if len(self._sent) < WAITING:
            return False
        with contextlib.suppress(ValueError, RuntimeError):  # what went down with a connection doesn't wait
            return not self._sent[0].is_published()
        return False

    def _announce(self) -> None:
        if self._discovery:
            prefix = self._settings.predictions.discovery
            topic = home_assistant.discovery_topic(prefix, self._settings.device)
            self._client.publish(topic, self._discovery, qos=1, retain=True)
        self._client.publish(self._availability, b"online", qos=1, retain=True)

    def _on_connect(
        self,
        _client: Client,
        _userdata: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            LOG.error("predictions.broker refused us: %s; check predictions.broker.username and password", reason)
        else:
            self._announce()
