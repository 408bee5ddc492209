"""The checks of check_sensor.py find a sensor's mistakes: each of these makes one."""

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_client.sensors import Channel, Reading
from edge_client.sensors.options import parse
from examples.own_sensor import SocOptions
from pollen.errors import SensorError
from tests.edge_client.sensors import check_sensor
from tests.edge_client.sensors.check_sensor import Rig


class Careful:
    """Passes all checks."""

    channels: tuple[Channel, ...] = (Channel("a", "V", -5, 5), Channel("b", "V", -5, 5))

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.file = Path(parse(SocOptions, dict(options)).file)
        if not self.file.exists():
            raise SensorError("it is gone")

    def read(self) -> Reading:
        if not self.file.exists():
            raise SensorError("it is gone")
        return Reading(self.values())

    def values(self) -> Any:
        return np.array([[1, 2]], np.float32)

    def close(self) -> None:
        pass


class TwoOfOneName(Careful):
    channels = (Channel("a", "V"), Channel("a", "V"))


class Doubles(Careful):
    def values(self) -> Any:
        return np.array([[1.0, 2.0]])


class ForgetsAChannel(Careful):
    def values(self) -> Any:
        return np.ones((1, 1), np.float32)


class OutOfRange(Careful):
    def values(self) -> Any:
        return np.array([[1, 9]], np.float32)


class SharesItsArray(Careful):
    shared = np.zeros((1, 2), np.float32)

    def values(self) -> Any:
        self.shared += 0.1
        return self.shared


class ClosesOnce(Careful):
    open = True

    def close(self) -> None:
        if not self.open:
            raise OSError("bad file descriptor")
        self.open = False


class LeavesAThread(Careful):
    def close(self) -> None:
        threading.Thread(target=threading.Event().wait, args=(20,), daemon=True).start()


class LeavesAFile(Careful):
    def close(self) -> None:
        os.open("/dev/null", os.O_RDONLY)


class TakesAnyOption(Careful):
    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__({"file": options["file"]})


class TakesAnyType(Careful):
    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__({**options, "file": str(options["file"])})


class RaisesOsError(Careful):
    def read(self) -> Reading:
        self.file.stat()
        return Reading(self.values())


class ReadsOn(Careful):
    def read(self) -> Reading:
        return Reading(self.values())


MISTAKES = {
    TwoOfOneName: check_sensor.check_channels_are_described_and_fixed,
    Doubles: check_sensor.check_readings_are_float32_rows_of_all_channels,
    ForgetsAChannel: check_sensor.check_readings_are_float32_rows_of_all_channels,
    OutOfRange: check_sensor.check_values_of_a_working_sensor_are_within_their_channels_ranges,
    SharesItsArray: check_sensor.check_a_reading_stays_as_it_is_when_the_next_is_taken,
    ClosesOnce: check_sensor.check_closing_twice_does_no_harm,
    LeavesAThread: check_sensor.check_opening_and_closing_leaves_no_thread_and_no_open_file,
    LeavesAFile: check_sensor.check_opening_and_closing_leaves_no_thread_and_no_open_file,
    TakesAnyOption: check_sensor.check_an_unknown_option_is_refused_by_name,
    TakesAnyType: check_sensor.check_an_option_of_another_type_is_refused_by_name,
    RaisesOsError: check_sensor.check_hardware_that_vanishes_is_a_sensor_error_until_it_is_back,
    ReadsOn: check_sensor.check_hardware_that_vanishes_is_a_sensor_error_until_it_is_back,
}


@pytest.fixture
def rig_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Careful]], Rig]:
    monkeypatch.setattr(check_sensor, "PATIENCE_S", 0.2)
    file = tmp_path / "hardware"
    file.touch()
    return lambda kind: Rig(kind, {"file": str(file)}, unplug=file.unlink, replug=file.touch)


@pytest.mark.parametrize("check", check_sensor.CHECKS, ids=lambda check: check.__name__)
def test_a_careful_sensor_passes(rig_of: Callable[[type[Careful]], Rig], check: Callable[[Rig], None]) -> None:
    check(rig_of(Careful))


@pytest.mark.parametrize("kind", MISTAKES, ids=lambda kind: kind.__name__)
def test_each_mistake_is_found(rig_of: Callable[[type[Careful]], Rig], kind: type[Careful]) -> None:
    with pytest.raises((AssertionError, OSError, SensorError, pytest.fail.Exception)):
        MISTAKES[kind](rig_of(kind))


def test_every_check_has_a_mistake_that_it_finds() -> None:
    assert set(MISTAKES.values()) == set(check_sensor.CHECKS)
