"""The optimizers a device can run, as constants for `edge_client.optimizers`."""

from typing import Any, Final

import keras

from pollen.bundle import Optimizer
from pollen.errors import CompileError

# Keras's own defaults.
_BY_NAME: Final = {
    "sgd": Optimizer("sgd", 0.01, {}),
    "momentum": Optimizer("momentum", 0.01, {"momentum": 0.9, "nesterov": 0.0}),
    "nesterov": Optimizer("momentum", 0.01, {"momentum": 0.9, "nesterov": 1.0}),
    "adam": Optimizer("adam", 0.001, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}),
}
_UNSUPPORTED: Final = (
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "loss_scale_factor",
    "gradient_accumulation_steps",
    "amsgrad",
)


def parse(optimizer: Any, learning_rate: float | None) -> Optimizer:
    """The bundle's description of an optimizer given by name or as keras.optimizers.SGD or Adam.

    `learning_rate` overrides the optimizer's own. Raises CompileError naming what a device can't do.
    """
    known = _by_name(optimizer) if isinstance(optimizer, str) else _from_object(optimizer)
    rate = known.learning_rate if learning_rate is None else float(learning_rate)
    return Optimizer(known.name, rate, dict(known.settings))


def _by_name(name: str) -> Optimizer:
    if name not in _BY_NAME:
        raise CompileError(f"optimizer {name!r} can't run on a device; use one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def _from_object(optimizer: Any) -> Optimizer:
    kind = type(optimizer)
    if kind not in (keras.optimizers.SGD, keras.optimizers.Adam):
        raise CompileError(f"optimizer {kind.__name__} can't run on a device; use SGD or Adam")
    config = optimizer.get_config()
    for setting in _UNSUPPORTED:
        if config.get(setting):
            raise CompileError(f"optimizer {kind.__name__}: {setting} isn't supported on a device; leave it out")
    rate = config["learning_rate"]
    if not isinstance(rate, int | float):
        raise CompileError(f"optimizer {kind.__name__}: a learning-rate schedule can't run on a device; give a number")
    if kind is keras.optimizers.Adam:
        return Optimizer("adam", float(rate), {name: float(config[name]) for name in ("beta_1", "beta_2", "epsilon")})
    if not config["momentum"]:
        return Optimizer("sgd", float(rate), {})
    settings = {"momentum": float(config["momentum"]), "nesterov": float(config["nesterov"])}
    return Optimizer("momentum", float(rate), settings)
