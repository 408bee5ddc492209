"""Why an open train task isn't worked on, in words."""

from edge_client.model.device_model import DeviceModel
from edge_client.network.fetching import Fetching
from edge_client.settings import Training
from edge_client.training.policy import Policy
from edge_client.training.train_task import lacks
from pollen.errors import MessageError
from pollen.messages import Task


def waits_for(
    task: Task, settings: Training, model: DeviceModel, fetching: Fetching, *, policy: Policy, trained_total: int
) -> str:
    """What `task` waits for; "" when it can go on. The first `trained_total` examples were trained on already."""
    if fetching.leaf is not None:
        return f"the {'model' if fetching.leaf == 'bundle' else 'newest weights'} from the server"
    if fetching.waits:
        return fetching.why
    if model.digest != task.bundle:
        return "the task's model isn't here yet"
    try:
        missing = lacks(task.config, model, settings, trained_total)
    except MessageError as error:
        return str(error)
    return model.problem or missing or policy.hold.why
