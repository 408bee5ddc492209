"""A ServerApp that keeps one train message under way at every node and adds each answer to the model as it comes."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()

POLL_S = 0.01


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Measure for `seconds`, from when every node has answered once."""
    config = context.run_config
    nodes, window = int(config["nodes"]), Path(str(config["window"]))
    model = np.zeros(int(config["kilobytes"]) * 250, np.float32)
    while len(found := list(grid.get_node_ids())) < nodes:
        time.sleep(0.2)
    sent_at: dict[str, float] = {}

    def send(to: list[int]) -> None:
        now = time.monotonic()
        content = RecordDict({"arrays": ArrayRecord({"x": Array(model)})})
        sent_at.update(dict.fromkeys(grid.push_messages([Message(content, one, MessageType.TRAIN) for one in to]), now))

    send(found)
    answered: set[int] = set()
    started, waits = 0.0, []
    while not started or time.monotonic() < started + float(config["seconds"]):
        replies = list(grid.pull_messages(list(sent_at)))
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"a node failed: {reply.error}")
            waits.append(time.monotonic() - sent_at.pop(reply.metadata.reply_to_message_id))
            answered.add(reply.metadata.src_node_id)
            model += reply.content["arrays"]["x"].numpy()
        if replies:
            send([reply.metadata.src_node_id for reply in replies])
        else:
            time.sleep(POLL_S)
        if not started and len(answered) == nodes:
            started, waits = time.monotonic(), []
            window.touch()
    told = {"seconds": time.monotonic() - started, "waits_ms": [1000 * wait for wait in waits]}
    window.with_suffix(".part").write_text(json.dumps(told))
    window.with_suffix(".part").rename(window)
