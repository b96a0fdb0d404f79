"""What each extra brings, alone, into a fresh environment with the package in it: no other torch.

python tools/extras.py                  the table, by pip's own resolution (nothing is installed)
python tools/extras.py hf timm          these extras alone
python tools/extras.py --install hf     these are really installed, one after another, and tried

The environment is made once in a temporary folder, with the versions of constraints.txt; extras are
resolved as a user asks for them, without it. Exit status 1 if an extra would change torch or
torchvision."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = ("torch", "torchvision")
TRY = "import torch, torchvision, autolora; print(torch.__version__, torchvision.__version__)"


def extras():
    "The names of all extras, as settings.ini tells them."
    config = ConfigParser()
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return [key.removeprefix("extra_") for key in config["metadata"] if key.startswith("extra_")]


def pip(python, source, *words):
    "What the environment's own pip prints, called in the folder `source`."
    command = [python, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pip {' '.join(map(str, words))}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def environment(folder):
    "The Python of a fresh environment with the package, without extras; a copy of the source."
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    source = folder / "source"  # a build leaves its traces there
    shutil.copytree(ROOT / "autolora", source / "autolora")
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "constraints.txt"):
        shutil.copy(ROOT / name, source)
    pip(python, source, "install", "-qq", "-c", "constraints.txt", *CORE, ".")
    return python, source


def tried(python):
    return subprocess.run(
        [python, "-c", TRY], cwd=python.parent, check=True, capture_output=True, text=True
    ).stdout.strip()


def brought(python, source, extra):
    "name -> version of all that the `extra` would bring or change."
    words = ["install", "--dry-run", "--quiet", "--report", "-", f".[{extra}]"]
    report = json.loads(pip(python, source, *words))
    found = [entry["metadata"] for entry in report["install"]]
    return {f["name"].lower(): f["version"] for f in found if f["name"].lower() != "autolora"}


def row(extra, found, after):
    heavy = [f"{name} {version}" for name, version in found.items() if name in CORE]
    told = ", ".join(heavy) or "unchanged"
    real = f"{after} after it was installed" if after else ""
    names = ", ".join(list(found)[:6]) + (", ..." if len(found) > 6 else "")
    return f"| {extra} | {len(found)} ({names}) | {told} | {real} |"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("extras", nargs="*")
    parser.add_argument("--install", nargs="+", default=[])
    args = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory(prefix="autolora-extras-") as folder:
        python, source = environment(Path(folder))
        before = tried(python)
        print(f"Before: torch and torchvision {before}\n")
        print("| extra | brings | torch, torchvision | really |\n|---|---|---|---|")
        for extra in args.extras or ([] if args.install else extras()):
            found = brought(python, source, extra)
            wrong |= bool(set(found) & set(CORE))
            print(row(extra, found, ""), flush=True)
        for extra in args.install:
            found = brought(python, source, extra)
            pip(python, source, "install", "-qq", f".[{extra}]")
            after = tried(python)
            wrong |= after != before
            print(row(extra, found, after), flush=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
