"""Keras layers as a device computes them: the forms that a copy of the user's model takes before it is traced.

The user's model and Keras itself stay as they are.
"""

from pollen.compiler.device_form.dropout import HostNoiseDropout, noise_shapes
from pollen.compiler.device_form.form import Form, copy

__all__ = ["Form", "HostNoiseDropout", "copy", "noise_shapes"]
