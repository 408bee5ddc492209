"""The gradient of transposed convolution, which is itself the gradient of a convolution."""

from typing import Any

import tensorflow as tf

from pollen.compiler.gradients.registry import gradient_of


@gradient_of("Conv2DBackpropInput")
def transposed_conv2d(op: tf.Operation, dy: Any) -> tuple[None, Any, Any]:
    """Gradients for the filter [KH, KW, CO, CI] and the input [N, H, W, CI]; dy is [N, OH, OW, CO].

    The input's is the convolution of dy; the filter's is that convolution's for its filter, given the input.
    """
    _, kernel, x = op.inputs
    dx = tf.nn.conv2d(dy, kernel, op.get_attr("strides"), op.get_attr("padding").decode())
    # dy depends on the filter too, through the loss.
    (for_filter,) = tf.gradients(dx, kernel, grad_ys=x, stop_gradients=[dy])
    return None, for_filter, dx
