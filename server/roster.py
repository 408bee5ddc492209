"""Who is there: the gateways' streams, and the devices behind them with what each trains.

One for all models of a server. Whoever calls a method or reads a field holds `changed`; that lock also guards what the
models' links keep, since an upload, a birth and a task may concern several of them at once.
"""

import logging
import threading
from dataclasses import dataclass

from pollen import messages
from pollen.bridge import DeviceState
from pollen.errors import MessageError
from pollen.identity import node_id
from pollen.messages import Birth, Death, Session
from server.bridge_service import Stream

LOG = logging.getLogger("pollen.server.roster")


@dataclass(slots=True)
class _Device:
    session: Session
    online: bool
    stream: Stream  # that last brought something of it: what goes to the device stays in order on one gateway
    birth: Birth | None = None


class Roster:
    """Streams and devices. `served`: names of the models; `version` grows whenever a device comes or goes; `blocked`:
    devices that get nothing to do, however they are."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.served: set[str] = set()
        self.streams: list[Stream] = []
        self.names: dict[int, str] = {}  # by Flower's node id
        self.version = 0
        self.closing = False
        self.blocked: frozenset[str] = frozenset()
        self._devices: dict[str, _Device] = {}

    def online(self, model: str) -> list[str]:
        """Names of the devices that are online and train `model`, without the blocked ones."""
        return [
            name
            for name, device in self._devices.items()
            if device.online and self.trains(name, model) and name not in self.blocked
        ]

    def is_online(self, device: str, model: str) -> bool:
        """Whether `device` is online, trains `model` and is not blocked."""
        known = self._devices.get(device)
        return known is not None and known.online and device not in self.blocked and self.trains(device, model)

    def newest(self, device: str) -> tuple[bool, Birth | None]:
        """Whether `device` is online, and its last birth."""
        known = self._devices.get(device)
        return (False, None) if known is None else (known.online, known.birth)

    def block(self, devices: frozenset[str]) -> None:
        """Make these the blocked devices."""
        self.blocked = devices
        self.version += 1
        self.changed.notify_all()

    def trains(self, device: str, model: str) -> bool:
        """Whether `device` says that it trains `model`; the only model is everyone's."""
        known = self._devices.get(device)
        return len(self.served) == 1 or (known is not None and known.birth is not None and model in known.birth.models)

    def stream_to(self, device: str) -> Stream | None:
        """The stream that leads to `device`: the one that last brought something of it, while that is open."""
        known = self._devices.get(device)
        if known is not None and known.stream in self.streams:
            return known.stream
        return self.streams[node_id(device) % len(self.streams)] if self.streams else None

    def detour_to(self, device: str) -> Stream | None:
        """Another stream than the one that leads to `device`, where there is one."""
        direct = self.stream_to(device)
        return next((stream for stream in self.streams if stream is not direct), direct)

    def heard(self, device: str, stream: Stream) -> None:
        """`stream` brought something of `device`."""
        if device in self._devices:
            self._devices[device].stream = stream

    def note(self, device: str, state: Birth | Death | None, stream: Stream) -> bool:
        """Take up a device's birth or death, None for one that was forgotten; whether its open tasks must be sent."""
        known = self._devices.get(device)
        changed = known is not None and known.online
        if state is None:
            self._devices.pop(device, None)
        elif isinstance(state, Birth):
            changed = known is None or not known.online or known.session != state.session or known.birth != state
            self._devices[device] = _Device(state.session, True, stream, state)
            self.names[node_id(device)] = device
            if changed and len(self.served) > 1 and not self.served.intersection(state.models):
                told = ", ".join(state.models) or "none"
                LOG.warning("%s gets no task: it trains %s, served: %s", device, told, ", ".join(sorted(self.served)))
        elif known is None or known.session == state.session:
            self._devices[device] = _Device(state.session, False, stream, known.birth if known else None)
        else:
            changed = False  # a late will of an earlier connection says nothing about the present one
        if changed:
            self.version += 1
            self.changed.notify_all()
        if not isinstance(state, Birth) or not (changed or device not in stream.greeted):
            return False
        stream.greeted.add(device)
        return True


def decode_state(frame: DeviceState) -> Birth | Death | None:
    """The birth or death in `frame`, None for a device that was forgotten. Raises MessageError, whatever was sent."""
    if not frame.payload:
        return None
    try:
        return messages.decode_state(frame.payload)
    except MessageError:
        raise
    except Exception as error:  # a decoder must raise nothing else; if one does, the gateway's stream goes on
        LOG.exception("%s: state could not be decoded", frame.device)
        raise MessageError("it could not be decoded") from error
