"""torchvision beside a CPU-only torch: a bare import works wherever this package is installed, and
what doesn't work is said."""

import os
import re
import subprocess
import sys
from pathlib import Path

from autolora.core.machine import misfits

ROOT = Path(__file__).parent.parent


def python(code, folder, **variables):
    "What `code` prints and raises in a fresh interpreter that finds `folder` and this package."
    env = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"} | variables
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
    )


def installed(folder):
    "What pip leaves of the entry points that setup.py names, in `folder`."
    told = re.search(r'"torch.backends": \["(.+?)"\]', (ROOT / "setup.py").read_text())
    place = folder / "mended-1.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: mended\nVersion: 1\n")
    (place / "entry_points.txt").write_text(f"[torch.backends]\n{told[1].replace('=', ' = ')}\n")


def test_a_bare_import_works_where_this_package_is_installed(tmp_path):
    installed(tmp_path)
    code = "import torchvision; print(torchvision.models.resnet18(num_classes=3).fc.out_features)"
    done = python(code, tmp_path)
    assert done.stdout.strip() == "3", done.stderr


def test_nothing_is_declared_twice(tmp_path):
    installed(tmp_path)
    ours = "from autolora.core.machine import import_torchvision; import_torchvision()"
    done = python(f"{ours}; import torchvision", tmp_path)
    assert not done.returncode, done.stderr
    done = python(f"import torchvision; {ours}", tmp_path)
    assert not done.returncode, done.stderr


def test_what_does_not_work_is_said(tmp_path):
    code = (
        "import torchvision.ops, torch; torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)"
    )
    installed(tmp_path)
    done = python(code, tmp_path)
    assert bool(misfits()) == (done.returncode != 0)
    for sentence in misfits():
        assert "torchvision.ops.nms" in sentence and "+cpu" in sentence


def test_it_costs_torch_nothing_where_they_fit(tmp_path):
    installed(tmp_path)
    code = "import sys, torch; print([m for m in sys.modules if m.startswith('autolora')])"
    done = python(code, tmp_path)
    loaded = eval(done.stdout)
    assert set(loaded) <= {
        "autolora",
        "autolora_torch",
        "autolora.core",
        "autolora.core.errors",
        "autolora.core.machine",
    }
