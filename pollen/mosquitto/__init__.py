"""The MQTT broker: find or install Mosquitto 2, configure it for one fleet, run it.

    binary = mosquitto.ensure(Path(".cache/pollen"), print)
    accounts = [Account("gateway-1", password, "gateway"), Account("device-1", other, "device")]
    with Mosquitto(binary, folder, fleet="demo", accounts=accounts) as broker:
        ...  # broker.port

With `tls=Tls(…)` certificates prove identity instead of passwords. `pollen broker-config` writes the configuration of a
broker that runs as a service.

`python -m pollen.mosquitto` installs it and prints where it is.
"""

from pollen.mosquitto.access import Account, Role
from pollen.mosquitto.configuration import Tls
from pollen.mosquitto.installation import ensure, find
from pollen.mosquitto.limits import Limits
from pollen.mosquitto.running import Mosquitto

__all__ = ["Account", "Limits", "Mosquitto", "Role", "Tls", "ensure", "find"]
