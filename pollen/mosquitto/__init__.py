"""The MQTT broker: find or install Mosquitto 2, configure it for one fleet, run it.

    binary = mosquitto.ensure(Path(".cache/pollen"), print)
    accounts = [Account("gateway-1", password, "gateway"), Account("device-1", other, "device")]
    with Mosquitto(binary, folder, fleet="demo", accounts=accounts) as broker:
        ...  # broker.port

`python -m pollen.mosquitto` installs it and prints where it is.
"""

from pollen.mosquitto.configuration import Account, Limits, Role
from pollen.mosquitto.installation import ensure, find
from pollen.mosquitto.running import Mosquitto

__all__ = ["Account", "Limits", "Mosquitto", "Role", "ensure", "find"]
