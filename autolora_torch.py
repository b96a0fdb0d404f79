"""What torch calls when it is imported, wherever autolora is installed (entry point
`torch.backends`): beside a CPU-only torch, torchvision then imports. A module of its own, because
torch has to come up whatever has become of the package or goes by its name."""

import contextlib


def mend():
    "Let torchvision be imported, if it can be helped."
    with contextlib.suppress(Exception):
        from autolora.core.machine import mend_torchvision

        mend_torchvision()
