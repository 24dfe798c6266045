"""The PyTorch adapter: `CvxpyLayer` and `ConicLayer` as modules around a `HostMap`, with every derivative."""

from __future__ import annotations

import torch

from cvxlayers.backend import Backend, register
from cvxlayers.torch.layers import ConicLayer, CvxpyLayer
from cvxlayers.torch.rule import host
from cvxlayers.torch.verbs import VERBS

__all__ = ["ConicLayer", "CvxpyLayer"]

register(Backend("torch", host, lambda x: torch.finfo(x.dtype).eps, VERBS))
