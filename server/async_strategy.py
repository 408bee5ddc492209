"""AsynchronousStrategy: which merge rule, with which sample weighting."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from server.rules import MergeRule, rules
from server.rules.rule import Incoming, Merged, Vector
from server.sample_weight import RunningMean, SampleWeighting, sample_weight


class AsynchronousStrategy:
    """Merges one update at a time into the model: a rule's arithmetic, weighted by the update's samples.

    rule: a rule object, or a rule's name with its options (`AsynchronousStrategy("fedasync", alpha=0.6)`).
    sample_weighting: equal, linear, sqrt or log of n over the running mean; at most `sample_weight_cap`.
    Raises ValueError for an unknown name or option.
    """

    def __init__(
        self,
        rule: MergeRule | str = "fedasync",
        *,
        sample_weighting: SampleWeighting = "linear",
        sample_weight_cap: float = 4.0,
        **options: Any,
    ) -> None:
        check_cap(sample_weight_cap)
        self.rule = named_rule(rule, options) if isinstance(rule, str) else rule
        self.sample_weighting: SampleWeighting = sample_weighting
        self.sample_weight_cap = sample_weight_cap
        self._samples = RunningMean()

    def merge(self, model: Vector, delta: Vector, base: Vector | None, staleness: int, samples: int) -> Merged:
        """Merge `delta` [P] of `samples` >= 1 samples, `staleness` >= 0 merges old, into `model` [P] in place.

        `base` [P] is the model the delta was trained from, None when it is no longer kept.
        """
        if staleness < 0 or samples < 1:
            raise ValueError(f"staleness {staleness} must be >= 0 and samples {samples} >= 1")
        mean = self._samples.add(samples)
        weight = sample_weight(samples, mean, self.sample_weighting, self.sample_weight_cap)
        return self.rule.merge(model, Incoming(delta, base, staleness, weight))

    def state(self) -> dict[str, Any]:
        """What must survive a restart: the running mean of samples and the rule's own state."""
        return {"mean": self._samples.mean, "count": self._samples.count, "rule": self.rule.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up `state` where an earlier process left it."""
        self._samples = RunningMean(state["mean"], state["count"])
        self.rule.restore(state["rule"])


def check_cap(sample_weight_cap: float) -> None:
    """Raise ValueError unless the cap is finite and at least 1, so that an average update keeps its weight."""
    if not 1 <= sample_weight_cap < math.inf:
        raise ValueError(f"sample_weight_cap = {sample_weight_cap} must be at least 1 and finite")


def named_rule(name: str, options: Mapping[str, Any], prefix: str = "") -> MergeRule:
    """The rule `name` with its options. Raises ValueError naming the option, with `prefix` before its name."""
    if name not in rules:
        raise ValueError(f"rule = {name!r} is not known; known: {', '.join(sorted(rules))}")
    known = inspect.signature(rules[name]).parameters
    for option in options:
        if option not in known:
            raise ValueError(f"{prefix}{option} is no option of rule {name}; known: {', '.join(known) or 'none'}")
    try:
        return rules[name](**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{prefix}{error}") from error
