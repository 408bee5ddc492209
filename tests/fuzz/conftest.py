"""The device tests' fixtures: a real broker, real devices."""

from tests.edge_client.conftest import bundles, device, server

__all__ = ["bundles", "device", "server"]
