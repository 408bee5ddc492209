"""A manifest for tests that need no graph."""

from pollen.manifest import Loss, Manifest, Optimizer, Tensor


def manifest(weights: tuple[Tensor, ...], state: tuple[Tensor, ...] = (), personal: tuple[str, ...] = ()) -> Manifest:
    """A model [2] -> [1] of these tensors."""
    return Manifest(
        model="m",
        weights=weights,
        state=state,
        frozen=(),
        personal=personal,
        input_shape=(2,),
        input_dtype="float32",
        input_below=0,
        output_shape=(1,),
        label_shape=(1,),
        label_dtype="float32",
        batch=4,
        noise=(),
        loss=Loss("mse", from_logits=False),
        optimizer=Optimizer("sgd", 0.1, {}),
        keras_version="3",
        tensorflow_version="2",
        architecture="{}",
    )
