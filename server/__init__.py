"""The asynchronous Flower server: merges the updates of a fleet of devices the moment they arrive."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from server.async_server import AsyncServer
    from server.async_strategy import AsynchronousStrategy
    from server.bridge_service import Listen
    from server.client_manager import AsyncClientManager
    from server.early_stop import EarlyStop
    from server.gateway_grid import GatewayGrid
    from server.gateway_hub import GatewayHub
    from server.history import AsyncHistory
    from server.streaming import Streaming
    from server.union_grid import UnionGrid
    from server.visualizer import AsyncVisualizer

__all__ = [
    "AsyncClientManager",
    "AsyncHistory",
    "AsyncServer",
    "AsyncVisualizer",
    "AsynchronousStrategy",
    "EarlyStop",
    "GatewayGrid",
    "GatewayHub",
    "Listen",
    "Streaming",
    "UnionGrid",
]

_MODULES: Final = {
    "AsyncClientManager": "client_manager",
    "AsyncHistory": "history",
    "AsyncServer": "async_server",
    "AsyncVisualizer": "visualizer",
    "AsynchronousStrategy": "async_strategy",
    "EarlyStop": "early_stop",
    "GatewayGrid": "gateway_grid",
    "GatewayHub": "gateway_hub",
    "Listen": "bridge_service",
    "Streaming": "streaming",
    "UnionGrid": "union_grid",
}


def __getattr__(name: str) -> Any:
    """What is asked for: Flower takes a second to import, which `pollen devices` does without, matplotlib 35 MB."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"server.{_MODULES[name]}"), name)
