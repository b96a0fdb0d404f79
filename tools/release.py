"""What a release is, tried as those who get it do: python tools/release.py [PYTEST'S ARGUMENTS]

Builds a source distribution in dist/, and from it, as an installer does, a wheel. Each is installed
with the pinned versions into an environment that holds nothing else. With the wheel in place of the
sources the tests run (all but those about the sources themselves, unless arguments say which); with
the source distribution a net is fine-tuned by the command, and its report verified."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
ABOUT_SOURCES = ("layout", "habits", "docs", "contributing", "notebooks", "course")
SHORT = ("robust_mini_gray", "digits", "--limit", "200", "--epochs", "1", "--out", "run")


def run(*command, cwd=None):
    print("$", *command, flush=True)
    outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([str(part) for part in command], cwd=cwd, env=outside, check=True)


def built():
    "The source distribution and the wheel that is built from it."
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    return next(DIST.glob("*.tar.gz")), next(DIST.glob("*.whl"))


def environment(folder, package, extras=""):
    "The folder of commands of a new environment with `package` and what it needs."
    venv.create(folder, with_pip=True)
    bin = folder / ("Scripts" if os.name == "nt" else "bin")
    pinned = ROOT / "constraints.txt"
    pip = (bin / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check")
    run(*pip, "-c", pinned, "torch", "torchvision", f"{package}{extras}")
    return bin


def main(*given):
    source, wheel = built()
    with tempfile.TemporaryDirectory() as made:
        made = Path(made)
        bin = environment(made / "from_source", source)
        run(bin / "autolora", "finetune", *SHORT, cwd=made)
        run(bin / "autolora", "verify", "run", cwd=made)
        bin = environment(made / "from_wheel", wheel, "[autoattack,mnist5k,tune,cluster,lab,dev]")
        with tarfile.open(source) as packed:
            packed.extractall(made, filter="data")
        beside = made / source.name.removesuffix(".tar.gz")
        shutil.rmtree(beside / "autolora")  # so that there is nothing to import but the wheel
        left_out = [f"--ignore=tests/test_{name}.py" for name in ABOUT_SOURCES]
        run(bin / "python", "-m", "pytest", "-n", "2", *(given or left_out), cwd=beside)
    print(f"Fit to be released: {source.name}, {wheel.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
