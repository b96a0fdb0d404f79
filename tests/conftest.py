import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # models and measurements that tests need too


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """Tests of one file stay in one worker, for the runs that they share. Notebooks share nothing:
    they come last and fill what time is left."""
    for item in items:
        if item.path.stem != "test_notebooks":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.path.stem == "test_notebooks")


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
