"""The TensorFlow adapter: `CvxpyLayer` and `ConicLayer` as layers of Keras 3 and functions of tensors."""

from __future__ import annotations

from cvxlayers.backend import Backend, register
from cvxlayers.tensorflow.call import host_array, resolution
from cvxlayers.tensorflow.layers import ConicLayer, CvxpyLayer
from cvxlayers.tensorflow.verbs import VERBS

__all__ = ["ConicLayer", "CvxpyLayer"]

register(Backend("tensorflow", host_array, resolution, VERBS))
