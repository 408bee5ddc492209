"""A Grid taken apart into what the merge loop meets in two ways: devices behind gateways, and ordinary nodes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flwr.serverapp import Grid

from pollen.bundle import Bundle, Tensor
from pollen.errors import PollenError
from server.client_manager import AsyncClientManager
from server.dialect import Dialect
from server.fleet import Fleet
from server.gateway_fleet import GatewayFleet
from server.gateway_grid import GatewayGrid
from server.grid_fleet import GridFleet
from server.union_fleet import UnionFleet
from server.union_grid import UnionGrid

ORDINARY: Final = "supernode:"  # before an ordinary node's id beside devices, none of which may be named so


@dataclass(frozen=True, slots=True)
class Parts:
    """The Grid whose nodes are devices behind gateways, and the one of ordinary nodes; one of them may be None."""

    gateways: GatewayGrid | None
    ordinary: Grid | None

    @property
    def bundle(self) -> Bundle | None:
        """The devices' model."""
        return self.gateways.link.bundle if self.gateways else None

    def fleet(
        self,
        clients: AsyncClientManager,
        tensors: Sequence[Tensor],
        dialect: Dialect,
        *,
        registers: bool,
        task_ttl_s: float,
    ) -> Fleet:
        """The nodes as the merge loop takes them; see GridFleet for what the ordinary ones need."""
        fleets: list[Fleet] = []
        if self.gateways is not None:
            fleets.append(GatewayFleet(self.gateways.link, dialect.task_config))
        if self.ordinary is not None:
            prefix = ORDINARY if fleets else ""
            fleets.append(
                GridFleet(
                    self.ordinary, clients, tensors, dialect, registers=registers, task_ttl_s=task_ttl_s, prefix=prefix
                )
            )
        return fleets[0] if len(fleets) == 1 else UnionFleet(fleets)


def parts_of(grid: Grid) -> Parts:
    """Raises PollenError for a union with two GatewayGrids: one model has one bundle and one fleet of devices."""
    grids = grid.grids if isinstance(grid, UnionGrid) else [grid]
    gateways = [part for part in grids if isinstance(part, GatewayGrid)]
    ordinary = [part for part in grids if not isinstance(part, GatewayGrid)]
    if len(gateways) > 1:
        raise PollenError("AsyncServer takes at most one GatewayGrid; run a server for each fleet")
    together = UnionGrid(*ordinary) if len(ordinary) > 1 else next(iter(ordinary), None)
    return Parts(gateways[0] if gateways else None, together)
