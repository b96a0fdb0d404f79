"""Backbones, checkpoints, and the views of a model: low-rank branch, second BatchNorm."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
