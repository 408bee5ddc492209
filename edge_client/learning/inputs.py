"""What the sensor's channels are to a model: its inputs, and perhaps its label."""

from collections.abc import Sequence

from edge_client.learning.learner import Learner, Listener
from edge_client.learning.standardise import Standardiser
from edge_client.settings import EdgeSettings
from pollen.errors import SettingsError
from pollen.interpreter import TrainingGraph


class Inputs:
    """The channels of the sensor that is open, with their statistics, which outlive models; makes learners of them.

    `listeners` hear the predictions of every learner made here.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._standardiser: Standardiser | None = None
        self._names: tuple[str, ...] = ()
        self._channels = 0
        self.listeners: list[Listener] = []

    @property
    def known(self) -> bool:
        """Whether a sensor has been open."""
        return self._channels > 0

    def use(self, channels: int, names: Sequence[str]) -> bool:
        """The sensor gives `channels` channels of these names (empty: not known); whether they are others than before.

        Then their statistics start anew.
        """
        if channels == self._channels and tuple(names) == self._names:
            return False
        self._channels, self._names, self._standardiser = channels, tuple(names), None
        return True

    def learner(self, graph: TrainingGraph) -> Learner:
        """A new learner for the graph's model.

        Raises BundleError when the model doesn't fit the channels, SettingsError when the one that shall be the label
        isn't among them.
        """
        settings = self._settings
        label = None
        if settings.learner.target == "label" and settings.labels.source == "channel":
            if settings.labels.channel not in self._names:
                raise SettingsError(
                    f"labels.channel = {settings.labels.channel!r} is no channel of the sensor; "
                    f"it has {', '.join(self._names) or 'none with a name'}"
                )
            label = self._names.index(settings.labels.channel)
        channels = self._channels - (label is not None)
        if self._standardiser is None:
            self._standardiser = Standardiser(channels, settings.learner.memory_samples)
        return Learner(
            graph,
            settings.learner,
            channels,
            self._standardiser,
            labels=settings.labels,
            label_channel=label,
            drift=settings.drift,
            anomaly=settings.anomaly,
            listeners=self.listeners,
        )
