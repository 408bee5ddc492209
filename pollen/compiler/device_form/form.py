"""The copy of a model that is traced, in one of three forms."""

from collections.abc import Collection
from typing import Any, Final, Literal

import keras

from pollen.compiler.device_form import activations, dropout
from pollen.compiler.device_form.convolution import multiply_patches, split_groups
from pollen.compiler.device_form.dropout import HostNoiseDropout
from pollen.compiler.device_form.normalisation import AdaptedNormalization, FoldedGroupNormalization, average_by_axis
from pollen.compiler.device_form.recurrent import unroll
from pollen.errors import CompileError

# "reference": Keras's own layers, to compare with. "inference": what device interpreters compute right. "training":
# also quick there while kernels are no constants.
Form = Literal["reference", "inference", "training"]

_REPLACED: Final[dict[Any, Any]] = {
    keras.layers.GroupNormalization: FoldedGroupNormalization,
    keras.layers.Normalization: AdaptedNormalization,
}


def copy(model: Any, form: Form, frozen: Collection[str] = ()) -> tuple[Any, list[HostNoiseDropout]]:
    """A copy of `model`, weights included, and its Dropout layers, which take their numbers from outside.

    The layers named in `frozen` are not trained, beside those that aren't in `model`. Raises CompileError for a
    Dropout layer that is used twice, and for a variable that is frozen without its layer.
    """
    dropout.check_used_once(model)
    noisy: list[HostNoiseDropout] = []

    def copy_layer(layer: Any) -> Any:
        if type(layer) is keras.layers.Dropout and layer.rate > 0:
            noisy.append(HostNoiseDropout(layer.rate, layer.name))
            return noisy[-1]
        kind: Any = _REPLACED.get(type(layer), type(layer))
        copied = kind.from_config(layer.get_config())
        if form != "reference":
            _bring_into_form(copied, form)
        return copied

    clone = keras.models.clone_model(model, clone_function=copy_layer)
    for source, target in zip(_floats(model), _floats(clone), strict=True):
        target.assign(source)
    for source, target in zip(model.layers, clone.layers, strict=True):
        _freeze(source, target, frozen)
    return clone, noisy


def _bring_into_form(layer: Any, form: Form) -> None:
    for part in layer._flatten_layers():
        activations.replace(part)
        if form == "training":
            multiply_patches(part)
            average_by_axis(part)
        else:
            split_groups(part)
    unroll(layer)


def _freeze(source: Any, target: Any, frozen: Collection[str]) -> None:
    # Keras's clone trains some layers that the original doesn't.
    if not source.trainable or source.name in frozen:
        target.trainable = False
    for original, copied in zip(_floats(source), _floats(target), strict=True):
        if copied.trainable and not original.trainable:
            raise CompileError(
                f"layer {source.name!r}: '{source.name}/{original.name}' is frozen, but not its layer; "
                "freeze the whole layer"
            )


def _floats(owner: Any) -> list[Any]:
    """The variables but for the seeds of random generators, which a copy may have fewer of."""
    return [variable for variable in owner.variables if "float" in str(variable.dtype)]
