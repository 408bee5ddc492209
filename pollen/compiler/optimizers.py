"""The optimizers and learning-rate schedules a device can run, as constants for `edge_client.training.optimizers`."""

from typing import Any, Final

import keras

from pollen.errors import BundleError, CompileError
from pollen.objective import CLIPPING, OPTIMIZER_SETTINGS, SCHEDULE_SETTINGS, Optimizer, Schedule

# Keras's own defaults.
_BY_NAME: Final = {
    "sgd": Optimizer("sgd", 0.01, {}),
    "momentum": Optimizer("momentum", 0.01, {"momentum": 0.9, "nesterov": 0.0}),
    "nesterov": Optimizer("momentum", 0.01, {"momentum": 0.9, "nesterov": 1.0}),
    "adam": Optimizer("adam", 0.001, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}),
    "adamw": Optimizer("adam", 0.001, {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7, "weight_decay": 0.004}),
    "rmsprop": Optimizer("rmsprop", 0.001, {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-7, "centered": 0.0}),
    "adagrad": Optimizer("adagrad", 0.001, {"initial_accumulator_value": 0.1, "epsilon": 1e-7}),
}
_KINDS: Final = {
    keras.optimizers.SGD: "sgd",
    keras.optimizers.Adam: "adam",
    keras.optimizers.AdamW: "adam",
    keras.optimizers.RMSprop: "rmsprop",
    keras.optimizers.Adagrad: "adagrad",
}
_SCHEDULES: Final = {
    "ExponentialDecay": "exponential_decay",
    "InverseTimeDecay": "inverse_time_decay",
    "PolynomialDecay": "polynomial_decay",
    "CosineDecay": "cosine_decay",
    "CosineDecayRestarts": "cosine_decay_restarts",
    "PiecewiseConstantDecay": "piecewise_constant_decay",
}
_UNSUPPORTED: Final = ("use_ema", "loss_scale_factor", "gradient_accumulation_steps", "amsgrad")


def parse(optimizer: Any, learning_rate: float | None) -> Optimizer:
    """The bundle's description of an optimizer given by name, as a keras.optimizers object, or as such a description.

    `learning_rate` overrides the optimizer's own, and its schedule. Raises CompileError naming what a device can't do.
    """
    try:
        if isinstance(optimizer, Optimizer):
            known = optimizer
        else:
            known = _by_name(optimizer) if isinstance(optimizer, str) else _from_object(optimizer)
        rate = known.learning_rate if learning_rate is None else float(learning_rate)
        return Optimizer(known.name, rate, dict(known.settings))
    except BundleError as error:
        raise CompileError(str(error)) from error


def clipped(name: str, kind: str, limit: float) -> Optimizer:
    """The optimizer of this name, with gradients clipped by one of `CLIPPING`. Raises CompileError."""
    known = _by_name(name)
    try:
        return Optimizer(known.name, known.learning_rate, known.settings | {kind: limit})
    except BundleError as error:
        raise CompileError(str(error)) from error


def _by_name(name: str) -> Optimizer:
    if name not in _BY_NAME:
        raise CompileError(f"optimizer {name!r} can't run on a device; use one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def _from_object(optimizer: Any) -> Optimizer:
    kind = type(optimizer)
    if kind not in _KINDS:
        known = ", ".join(known.__name__ for known in _KINDS)
        raise CompileError(f"optimizer {kind.__name__} can't run on a device; use one of {known}")
    config = optimizer.get_config()
    for setting in _UNSUPPORTED:
        if config.get(setting):
            raise CompileError(f"optimizer {kind.__name__}: {setting} isn't supported on a device; leave it out")
    optional = {name: float(config[name]) for name in (*CLIPPING, "weight_decay") if config.get(name)}
    excluded = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    if "weight_decay" in optional and any(getattr(optimizer, name, None) for name in excluded):
        raise CompileError(
            f"optimizer {kind.__name__}: a device decays all weights; use l2 regularisers on those that are to decay"
        )
    name = _KINDS[kind]
    if name == "sgd" and config["momentum"]:
        name = "momentum"
    settings = {setting: float(config[setting]) for setting in OPTIMIZER_SETTINGS[name]}
    return Optimizer(name, _learning_rate(kind.__name__, config["learning_rate"]), settings | optional)


def _learning_rate(kind: str, configured: Any) -> float | Schedule:
    """A rate as an optimizer's config has it: a number, or the map that Keras serialises a schedule to."""
    if isinstance(configured, int | float):
        return float(configured)
    own = isinstance(configured, dict) and configured.get("module") == "keras.optimizers.schedules"
    if not own or configured["class_name"] not in _SCHEDULES:
        raise CompileError(
            f"optimizer {kind}: its learning rate can't be computed on a device; "
            f"give a number or one of {', '.join(_SCHEDULES)}"
        )
    name, config = _SCHEDULES[configured["class_name"]], configured["config"]
    if name == "piecewise_constant_decay":
        # Keras compares whole steps, and cuts the boundaries to such.
        boundaries = tuple(float(int(boundary)) for boundary in config["boundaries"])
        return Schedule(name, boundaries=boundaries, rates=tuple(map(float, config["values"])))
    settings = set(SCHEDULE_SETTINGS[name])
    if config.get("warmup_target") is not None:
        settings |= {"warmup_target", "warmup_steps"}
    return Schedule(name, {setting: float(config[setting]) for setting in sorted(settings)})
