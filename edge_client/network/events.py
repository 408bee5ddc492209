"""What the network thread tells the agent's main loop."""

from dataclasses import dataclass

from pollen import messages, topics


@dataclass(frozen=True, slots=True)
class Connected:
    """The session is up, subscriptions are made. The broker takes packets of `largest_packet` bytes (None: any);
    `address` is this end's."""

    session: messages.Session
    largest_packet: int | None
    address: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message on the device's own `task` or `receipt` topic."""

    leaf: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class ModelReceived:
    """The retained message of a model topic: `weights` or `bundle` as it was fetched, `infer` whenever there is one."""

    leaf: topics.ModelLeaf
    payload: bytes


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The broker has answered the publish `ticket`; `error` is its reason, "" when it took the message.

    `heard` is False when nobody was subscribed: the message is gone.
    """

    ticket: int
    error: str
    heard: bool


Event = Connected | Lost | Received | ModelReceived | Acknowledged
