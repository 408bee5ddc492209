"""The asynchronous Flower server: merges the updates of a fleet of devices the moment they arrive."""

from server.async_server import AsyncServer
from server.async_strategy import AsynchronousStrategy
from server.bridge_service import Listen
from server.client_manager import AsyncClientManager
from server.gateway_grid import GatewayGrid
from server.history import AsyncHistory

__all__ = ["AsyncClientManager", "AsyncHistory", "AsyncServer", "AsynchronousStrategy", "GatewayGrid", "Listen"]
