import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # models and measurements that tests need too


@pytest.fixture(scope="session")
def chromium():
    """The path of a Chromium that starts; a test that asks for it is skipped, with the reason,
    where there is none."""
    found = (
        os.environ.get("AUTOLORA_CHROMIUM")
        or subprocess.run(
            ["sh", ROOT / "tests" / "find_chromium.sh"], capture_output=True, text=True
        ).stdout.strip()
    )
    return found or pytest.skip(
        "no Chromium found: install one, or set AUTOLORA_CHROMIUM to its path"
    )


@pytest.fixture
def one_thread():
    "Tiny tensors: several threads would only wait for one another."
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
