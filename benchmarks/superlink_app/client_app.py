"""A ClientApp that trains nothing and answers at once with an update as large as the model."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:  # noqa: ARG001 - Flower's signature
    """A delta of the size of what was sent."""
    (name, sent) = next(iter(message.content["arrays"].items()))
    delta = np.full_like(sent.numpy(), 1e-4)
    metrics = MetricRecord({"num-examples": 32})
    return Message(RecordDict({"arrays": ArrayRecord({name: Array(delta)}), "metrics": metrics}), reply_to=message)
