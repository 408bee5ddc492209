"""paho's MQTT client, made to stop in the middle of a read, and to read what is large in pieces."""

from collections.abc import Callable
from typing import Final

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode

_RECEIVE_BYTES: Final = 1024 * 1024


class HeldClient(Client):
    """A client that takes no further packet from its socket while `held` says so.

    `Client.loop_read` takes as many packets as there are messages under way, hundreds in one call, so that not calling
    it again comes too late. Each of them is read by `_packet_read`, which is private to paho as `_sock_recv` is: tests
    read messages through a held client, and fail should a release of paho read them in another way.
    """

    held: Callable[[], bool] = staticmethod(lambda: False)

    def _packet_read(self) -> MQTTErrorCode:
        return MQTTErrorCode.MQTT_ERR_AGAIN if self.held() else super()._packet_read()

    def _sock_recv(self, bufsize: int) -> bytes:
        # paho asks for all that is missing, and so much is allocated each time: 66 ms for a message of 20 MB, not 22.
        return super()._sock_recv(min(bufsize, _RECEIVE_BYTES))
