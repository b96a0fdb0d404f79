"""Robust fine-tuning with nothing to set: `finetune(backbone, data)`."""

import os

import lazy_loader

__version__ = "0.2.0"

# before torch: threads that spin while they wait make a busy machine crawl
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The names stand in __init__.pyi and are imported when they are asked for: `import autolora`
# loads neither torch nor a widget, and autolora.train.schedule can be used without either.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
