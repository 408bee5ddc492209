"""The models in PyTorch: forward, backward and an SGD step on one thread."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.training_models import CLASSES, CNN, GRU, MLP, RATE, SHAPES, batch_of


class LastState(nn.Module):
    """A GRU that gives its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(SHAPES["gru"][1], GRU, batch_first=True)

    def forward(self, x: Any) -> Any:
        """The last state [batch, units]."""
        return self.gru(x)[1][0]


def build(model: str) -> Any:
    """The module, which ends in logits."""
    if model == "mlp":
        first, second, third = MLP
        hidden = [nn.Linear(first, second), nn.ReLU(), nn.Linear(second, third), nn.ReLU()]
        return nn.Sequential(*hidden, nn.Linear(third, CLASSES))
    if model == "gru":
        return nn.Sequential(LastState(), nn.Linear(GRU, CLASSES))
    first, second, third = CNN
    convolutions = [nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(second * 7 * 7, third), nn.ReLU(), nn.Linear(third, CLASSES))


def stepper(model: str, size: int, _bundles: Path) -> Callable[[], object]:
    """One step."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    network, batch = build(model), batch_of(model, size)
    x = torch.from_numpy(batch.x)
    if model == "cnn":
        x = x.permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(batch.y).long()
    optimizer, loss = torch.optim.SGD(network.parameters(), RATE), nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(network(x), y).backward()
        optimizer.step()

    return step
