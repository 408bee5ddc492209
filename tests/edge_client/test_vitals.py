"""What a device says of itself, with everything switched on, and with nothing left of the day's bytes."""

from collections.abc import Callable
from pathlib import Path

from pollen import cbor
from pollen.bundle import Bundle
from pollen.fields import MAX_NAMED
from tests.edge_client.fleet import Device, Server

Bundles = Callable[[str], Bundle]
Devices = Callable[..., Device]


def test_vitals_of_all_features_fit_into_a_message(server: Server, device: Devices, bundles: Bundles) -> None:
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(
        inference={"graph": "always"},
        upload={"bytes_per_day": 10**9, "metered_interfaces": ["wwan0"], "vitals_s": 1.0},
        anomaly={"enabled": True},
        drift={"detector": "adwin"},
        local={"socket": "status.sock"},
    )
    server.receipt(server.update(server.task(bundle)))
    server.wait_for(lambda: server.vitals().get("receipts_merged"), 30, "vitals after an update")  # decodes them
    values = server.vitals()
    assert {"budget_left_bytes", "metered", "base_version", "inference_version", "anomalies", "drifts"} <= set(values)
    assert len(values) <= MAX_NAMED - 8, "a message of more entries is refused whole; leave room for a machine's own"
    assert one.process.poll() is None


def test_a_device_that_has_spent_its_bytes_is_still_seen_and_told(
    server: Server, device: Devices, bundles: Bundles, tmp_path: Path
) -> None:
    state = tmp_path / "pi-1" / "state"
    state.mkdir(parents=True)
    (state / "sent_today").write_bytes(cbor.encode({"hours": [10**6], "age_s": 0.0}))
    bundle = bundles("forecast")
    server.publish_model(bundle, 0)
    one = device(upload={"bytes_per_day": 10**6})  # waits for the birth
    task = server.task(bundle)
    server.wait_for(lambda: f"train task {task.hex()[:8]}" in one.log(), 20, "the task")
    server.wait_for(lambda: "0 of 1000000 bytes a day are left" in one.log(), 60, "the update that waits")
    assert not server.payloads("update")
    assert not server.payloads("vitals")
