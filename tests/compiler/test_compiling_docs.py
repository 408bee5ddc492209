"""docs/compiling.md lists what compiles, no more and no less."""

import re
from pathlib import Path

DOCS = (Path(__file__).parents[2] / "docs" / "compiling.md").read_text()
NAME = r"\b[A-Z][A-Za-z0-9]+\b"


def row(title: str) -> str:
    found = re.search(rf"^\| {title} \| (.*) \|$", DOCS, re.MULTILINE)
    assert found, title
    return re.sub(r"\([^)]*\)", "", found[1])


def test_the_layers_are_those_that_compile() -> None:
    import keras

    from pollen.compiler.layers import registry

    titles = (
        "dense and shape",
        "joining",
        "convolution",
        "pooling",
        "normalisation",
        "recurrent",
        "attention",
        "other",
    )
    listed = {name for title in titles for name in re.findall(NAME, row(title))}
    assert {getattr(keras.layers, name).__name__ for name in listed} == set(registry.names()) - {"InputLayer"}


def test_the_activations_losses_and_optimizers_are_those_that_compile() -> None:
    from pollen.compiler.layers import ACTIVATIONS
    from pollen.objective import CLIPPING, LOSSES, OPTIMIZER_SETTINGS

    assert set(row("activations").split(", ")) == set(ACTIVATIONS)
    assert all(loss in row("losses") for loss in LOSSES)
    assert all(name in row("optimizers") for name in (*OPTIMIZER_SETTINGS, *CLIPPING))
