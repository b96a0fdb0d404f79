"""Robust fine-tuning with nothing to set: `finetune(backbone, data)`."""

import os

__version__ = "0.1.0"

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch: threads that spin while they wait make a busy machine crawl

_LAZY = {
    "finetune": "rft",
    "pretrain": "rft",
    "Run": "history",
    "compare": "study",
    "tune": "search",
}  # so that autolora.schedule can be used without torch


def __getattr__(name):
    from importlib import import_module

    if name not in _LAZY:
        raise AttributeError(f"module 'autolora' has no attribute {name!r}")
    return getattr(import_module(f"autolora.{_LAZY[name]}"), name)
