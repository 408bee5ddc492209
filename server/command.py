"""`pollen-server`: the asynchronous Flower server as a service."""

import importlib
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from flwr.common import NDArrays, Scalar
from flwr.server.strategy import FedAvg

from pollen import service
from pollen.bundle import Bundle
from pollen.encoding import named
from pollen.errors import PollenError, SettingsError
from pollen.signing import SigningKey
from pollen.systemd import notify
from server import evaluation, lifecycle
from server.async_server import AsyncServer
from server.blocked import FILE as BLOCKED
from server.blocked import BlockedDevices
from server.client_manager import AsyncClientManager
from server.gateway_grid import GatewayGrid
from server.gateway_hub import GatewayHub
from server.history import AsyncHistory
from server.inference_graphs import InferenceGraphs
from server.model_service import ModelService, make_folder, run_together
from server.reload import LIVE, tunings
from server.settings import Evaluation, ServedModel, Settings
from server.web.web_service import WebService

LOG = logging.getLogger("pollen.server")

HISTORY_IN_MEMORY = 1000  # merges; a service runs for months, and the file has them all

EXAMPLES = """examples:
  pollen-server --config server.toml
  POLLEN_LISTEN_PORT=7071 pollen-server --config server.toml --show-config

server.toml, the least there must be:
  bundle = "model.bundle"     # made by: pollen compile model.keras --loss mse -o model.bundle
  state_dir = "state"

several models in one server, each with its own rule, tasks and state in state_dir/<name>:
  state_dir = "state"
  [models.weather]            # what it does not say itself is taken from the top: [merge], [task], …
  bundle = "weather.bundle"
  [models.gestures]
  bundle = "gestures.bundle"
  merge = {rule = "fedbuff"}

files in state_dir: state.sqlite (resumed from), history.jsonl (every merge; before it
  history.jsonl.1), final.npz (weights when stopped), model-….bundle (for `pollen model export`)
"""


def main(argv: list[str] | None = None) -> int:
    """Run the server until SIGTERM or SIGINT; returns the exit code."""
    return service.run(
        argv,
        name="pollen-server",
        description="Merge the updates of a fleet of devices into one model, each the moment it arrives.",
        examples=EXAMPLES,
        cls=Settings,
        serve=serve,
        live=("models", *LIVE),
    )


def serve(settings: Settings, stop: threading.Event, reloads: service.Reloads[Settings]) -> None:
    """Listen for gateways and merge into every model until `stop`; then write the final.npz of each.

    A model that fails stops the others: whoever starts the service again gets all of them back, while one that was
    missing beside others that run might not be noticed.
    """
    make_folder(settings.state_dir)
    blocked = BlockedDevices(settings.state_dir / BLOCKED)
    web = WebService(settings.fleet, settings.http, settings.state_dir, settings.listen) if settings.http.port else None
    watch = web.view if web else None
    with (
        GatewayHub(fleet=settings.fleet, listen=settings.listen, blocked=blocked.names, watch=watch) as hub,
        ExitStack() as also,
    ):
        blocked.changed = hub.block
        current = _Current(settings, reloads)
        services = [_service(model, hub, stop, web) for model in settings.served()]
        hub.start()
        LOG.info("listening for gateways of fleet %s on %s:%d", settings.fleet, settings.listen.host, hub.port)
        if web is not None:
            links = [service.grid.link for service in services]
            http = also.enter_context(web.serving(hub, links, blocked, stop))
            LOG.info("HTTP on %s:%d", settings.http.host, http.port)
        try:
            run_together(services, stop, lambda: current.take_over(services))
        finally:
            notify("STOPPING=1")


class _Current:
    """The settings that the models run by, as far as they can be changed."""

    def __init__(self, settings: Settings, reloads: service.Reloads[Settings]) -> None:
        self._settings = settings
        self._reloads = reloads

    def take_over(self, services: Sequence[ModelService]) -> None:
        """What a SIGHUP has brought since the last call, if one has."""
        loaded = self._reloads.take()
        if loaded is None:
            return
        taken = tunings(self._settings, loaded)
        for served in services:
            if served.name in taken:
                served.take_over(taken[served.name])


def _service(model: ServedModel, hub: GatewayHub, stop: threading.Event, web: WebService | None) -> ModelService:
    bundle = Bundle.read(model.bundle)
    settings = model.settings
    score = _evaluation(settings.evaluation, bundle)
    make_folder(model.folder)
    config: dict[str, Scalar] = {**settings.task.config}
    strategy = FedAvg(
        on_fit_config_fn=lambda _version: config,
        evaluate_fn=score,
        fraction_evaluate=settings.evaluation.federated_fraction,
    )
    # FedAvg waits for two clients by default; here one device that is there is enough.
    strategy.min_available_clients = strategy.min_fit_clients = strategy.min_evaluate_clients = 1
    path, watch = model.folder / lifecycle.HISTORY, None
    if web is None:
        history = AsyncHistory(path, keep=HISTORY_IN_MEMORY)
    else:
        manifest = bundle.manifest
        watch, history = web.watch(manifest.model, settings.merge.rule, manifest.shared_size, path, HISTORY_IN_MEMORY)
    grid = GatewayGrid(
        bundle,
        hub=hub,
        task_ttl_s=settings.task.ttl_s,
        update_limit_bytes=settings.limits.update_bytes,
        signing_key=None if settings.signing_key is None else SigningKey.read(settings.signing_key),
    )
    server = AsyncServer(
        strategy,
        AsyncClientManager(),
        settings.merge.strategy(settings.privacy),
        total_train_time=settings.stop.train_time_s or None,
        merges=settings.stop.merges or None,
        early_stop=settings.stop.early_stop(),
        waiting_interval=settings.evaluation.interval_s,
        federated_interval=settings.evaluation.federated_interval_s,
        federated_deadline=settings.evaluation.federated_deadline_s,
        publish_interval=settings.publish.min_interval_s,
        state=model.folder / lifecycle.STATE,
        history=history,
        snapshots=settings.merge.snapshots,
        retention=settings.retention,
        guard=settings.guard,
        inference=_inference(model, grid, history),
        stop=stop,
        watch=watch,
    )
    return ModelService(model.name, model.folder, server, grid, strategy)


def _inference(model: ServedModel, grid: GatewayGrid, history: AsyncHistory) -> InferenceGraphs | None:
    settings, link = model.settings, grid.link
    if not settings.inference.kinds:
        return None
    holdout = settings.inference.holdout_for(link.bundle, settings.evaluation.data)
    return InferenceGraphs(
        settings.inference, link.bundle, model.folder, holdout=holdout, publish=link.publish_inference, history=history
    )


FlowerEvaluate = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None]


def _evaluation(settings: Evaluation, bundle: Bundle) -> FlowerEvaluate | None:
    if settings.data is not None:
        from_file = evaluation.from_file(bundle, settings.data)
        return lambda version, arrays, _config: from_file(version, _flat(arrays))
    if settings.hook:
        hook = _hook(settings.hook)
        tensors = bundle.manifest.shared
        return lambda version, arrays, _config: _score(hook(version, named(_flat(arrays), tensors)))
    return None


def _score(returned: Any) -> tuple[float, dict[str, Scalar]] | None:
    """What a hook returned, None allowed; raises PollenError when it is no score."""
    if returned is None:
        return None
    try:
        loss, metrics = returned
        return float(loss), dict(metrics)
    except (TypeError, ValueError) as error:
        raise PollenError(f"evaluation.hook must return (loss, {{metric: value}}), not {returned!r:.100}") from error


def _flat(arrays: NDArrays) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.concatenate([np.asarray(array, np.float32).ravel() for array in arrays])


def _hook(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise SettingsError(
            f"evaluation.hook = {name!r}: can't be imported ({type(error).__name__}: {error}); write module:function"
        ) from error
    if not callable(found):
        raise SettingsError(f"evaluation.hook = {name!r}: is no function")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
