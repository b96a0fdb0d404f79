import os
import subprocess
from pathlib import Path

import pytest

# Several tests run at once: torch shares the cores out among them, as two processes that each take all of them stand in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))))

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def chromium():
    "The path of a Chromium that starts; a test that asks for it is skipped, with the reason, where there is none."
    found = os.environ.get("AUTOLORA_CHROMIUM") or subprocess.run(
        ["sh", ROOT / "tests" / "find_chromium.sh"], capture_output=True, text=True).stdout.strip()
    return found or pytest.skip("no Chromium found: install one, or set AUTOLORA_CHROMIUM to its path")
