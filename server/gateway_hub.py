"""GatewayHub: one port for the gateways of all models; it brings each upload to the model whose task it answers."""

import logging
from collections.abc import Mapping
from typing import Any, Final, Self

from pollen import bridge, messages
from pollen.bridge import Accepted, DeviceState, DeviceVitals, Frame, ToDevice, Upload
from pollen.bundle import Bundle
from pollen.errors import MessageError, SettingsError
from pollen.messages import Death, Receipt
from pollen.signing import SigningKey
from server.bridge_service import BridgeService, Listen, Stream, serve
from server.delivery import read
from server.gateway_link import Delivery, GatewayLink
from server.roster import Roster, decode_state
from server.watch import FleetWatch

LOG = logging.getLogger("pollen.server.hub")

START_S: Final = 30.0  # how long an upload that no model claims waits until all models know their open tasks
CLOSE_S: Final = 5.0  # how long a stop waits for gateways to take what is queued for them
STRANGERS_KEPT: Final = 1024


class GatewayHub:
    """Listens for the gateways of `fleet` at `listen` (port 0: a free one); a context manager that closes it.

    `blocked`: see `block`; `watch` is told who comes and goes.

    Make a `GatewayGrid(bundle, hub=hub)` for each model, then `start`: an upload that comes before its model is known
    would be refused. An upload belongs to the model whose task it answers; one that can't be read, to the model that
    has an open task for its device, or that its device says it trains; any other is refused.
    """

    def __init__(
        self,
        *,
        fleet: str = "default",
        listen: Listen | None = None,
        blocked: frozenset[str] = frozenset(),
        watch: FleetWatch | None = None,
    ) -> None:
        self.port = 0
        self._watch = watch or FleetWatch()
        self._fleet = fleet
        self._listen = listen or Listen()
        self._roster = Roster()
        self._roster.blocked = blocked
        self._service: BridgeService | None = None
        self._links: list[GatewayLink] = []
        self._server: Any = None
        self._strangers: set[str] = set()  # who has had its line in the log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, bundle: Bundle, task_ttl_s: float, signing_key: SigningKey | None = None) -> GatewayLink:
        """The link of a further model, signed with `signing_key` if there is one. Raises SettingsError for a second
        one of the same name, or after `start`."""
        name = bundle.manifest.model
        if self._server is not None:
            raise SettingsError(f"model {name!r}: the hub has started; make every GatewayGrid before that")
        if name in self._roster.served:
            raise SettingsError(f"model {name!r} is there twice; compile one of them with another --name")
        self._roster.served.add(name)
        self._links.append(GatewayLink(bundle, self._roster, task_ttl_s, signing_key))
        return self._links[-1]

    def start(self) -> None:
        """Listen; `port` is known then. Raises PollenError when the port is taken."""
        self._service = BridgeService(
            self._fleet, self._listen, opened=self._attach, received=self._receive, closed=self._detach
        )
        self._server, self.port = serve(self._service, self._listen)

    def block(self, devices: frozenset[str]) -> None:
        """Make these the blocked devices: they get no tasks, and their uploads are refused unread. Who is no longer
        one gets its open tasks again."""
        with self._roster.changed:
            back = self._roster.blocked - devices
            self._roster.block(devices)
            for device in back:
                for link in self._links:
                    link.greet_device(device)

    def refusals(self) -> Mapping[str, int]:
        """How many streams were refused, by reason."""
        return dict[str, int]() if self._service is None else dict(self._service.refusals.counts().items())

    def close(self) -> None:
        """Send what is queued, end all streams and stop listening. May be called again."""
        with self._roster.changed:
            self._roster.closing = True
            for stream in self._roster.streams:
                stream.finish()
            self._roster.changed.notify_all()
        if self._server is not None:
            self._server.stop(grace=CLOSE_S).wait()

    # --- what gateways bring

    def _attach(self, stream: Stream) -> None:
        with self._roster.changed:
            self._roster.streams.append(stream)
            for link in self._links:
                link.greet(stream)
        self._watch.connected(stream)

    def _detach(self, stream: Stream) -> None:
        with self._roster.changed:
            self._roster.streams.remove(stream)
            for link in self._links:
                link.lost(stream)
            self._roster.changed.notify_all()
        self._watch.disconnected(stream)

    def _receive(self, stream: Stream, frame: Frame) -> None:
        match frame:
            case Upload():
                self._route(Delivery(stream, frame.delivery, frame.device, frame.leaf, frame.payload))
            case DeviceState():
                self._note_state(stream, frame)
            case DeviceVitals():
                self._watch.vitals(frame.device, frame.payload)
            case _:
                raise MessageError(f"a gateway does not send {type(frame).__name__} frames here")

    def _note_state(self, stream: Stream, frame: DeviceState) -> None:
        try:
            state = decode_state(frame)
        except MessageError as error:
            LOG.warning("%s: state ignored: %s", frame.device, error)
            return
        with self._roster.changed:
            if self._roster.note(frame.device, state, stream):
                for link in self._links:
                    link.greet_device(frame.device, stream)
            online, birth = self._roster.newest(frame.device)
            why = state.reason if isinstance(state, Death) else ""
            self._watch.noted(frame.device, birth, online=online, why=why)

    def _route(self, delivery: Delivery) -> None:
        with self._roster.changed:
            self._roster.heard(delivery.device, delivery.stream)
            link = self._link_of(delivery)
            if delivery.device in self._roster.blocked:
                link = link or self._links[0]  # whichever: it is refused unread
            elif link is None or not self._is_certain(link, delivery):
                self._roster.changed.wait_for(self._all_started, START_S)
                link = self._link_of(delivery)
            if link is not None:
                link.receive(delivery)
                return
        self._refuse(delivery)

    def _all_started(self) -> bool:
        return self._roster.closing or all(link.started or link.closed for link in self._links)

    def _is_certain(self, link: GatewayLink, delivery: Delivery) -> bool:
        """Whether no model that has yet to resume its open tasks can claim what was found to be for `link`."""
        if len(self._links) == 1 or self._all_started() or link.knows(delivery):
            return True
        return read(delivery, bridge.MAX_MESSAGE_BYTES).task is None

    def _link_of(self, delivery: Delivery) -> GatewayLink | None:
        """The model that `delivery` is for, None when none can be told."""
        if len(self._links) == 1:
            return self._links[0]
        device = delivery.device
        knowing = [link for link in self._links if link.knows(delivery)]
        training = [link for link in self._links if self._roster.trains(device, link.name)]
        training.sort(key=lambda link: link.closed)
        waiting = [link for link in self._links if link.has_task_for(device)]
        both = [link for link in training if link in waiting]
        return next(iter(knowing or both or waiting or training), None)

    def _refuse(self, delivery: Delivery) -> None:
        """Settle an upload that is for no model here, so that neither its device nor its gateway sends it for ever."""
        reply = read(delivery, bridge.MAX_MESSAGE_BYTES)
        reason = f"no model served here ({', '.join(sorted(self._roster.served))}) gave this device a task"
        self._watch.unclaimed(delivery.device, reason, "unknown-task")
        if delivery.device not in self._strangers:
            if len(self._strangers) >= STRANGERS_KEPT:
                self._strangers.clear()
            self._strangers.add(delivery.device)
            LOG.warning("%s: refused, this and what follows: %s", delivery.device, reason)
        delivery.stream.put(Accepted((delivery.number,)))
        if reply.task is not None:
            receipt = messages.encode(Receipt(reply.task, reply.seq, "rejected", 0, reason=reason))
            delivery.stream.put(ToDevice(delivery.device, "receipt", receipt))
