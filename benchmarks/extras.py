"""Whether each extra, installed alone beside torch and autolora, leaves torch as it was.

python benchmarks/extras.py          all of them
python benchmarks/extras.py timm hf  these

One fresh environment gets torch, torchvision and autolora in the tested versions; a copy of it for
each extra gets that. Told: how much it brought, whether torch and torchvision are the very files of
before, whether `pip check` agrees, and whether what it is for can be imported, before and after
`import autolora`. It needs the package index. What came of it stands in results/extras.md."""

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from _faults import markdown
from _harness import HERE

ROOT = HERE.parent
PAGE = HERE / "results" / "extras.md"
COLUMNS = ["extra", "packages it brings", "MB", "seconds", "torch", "pip check", "imports"]
TORCH = ("torch", "torchvision")
LISTED = """import importlib.metadata as m, json
print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"""


def requirements():
    "The names of what each extra asks for, by extra, as settings.ini has them."
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    told = {k: v for k, v in settings["metadata"].items() if k.startswith("extra_")}
    names = lambda lines: [re.match(r"[\w-]+", line)[0] for line in lines.split("\n") if line]
    return {k.removeprefix("extra_"): names(v) for k, v in told.items() if k != "extra_dev"}


def run(python, *words):
    "What the command prints; raises `CalledProcessError` if it fails."
    outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(python), *map(str, words)]
    return subprocess.run(
        command, env=outside, check=True, capture_output=True, text=True, cwd=python.parent
    ).stdout


def install(python, *what):
    quiet = ("-qq", "--disable-pip-version-check")
    run(python, "-m", "pip", "install", *quiet, "-c", ROOT / "constraints.txt", *what)


def files(folder):
    "Every file of torch and torchvision in the environment in `folder`: where, how large, when."
    found = {}
    for name in TORCH:
        for path in folder.glob(f"lib/python3*/site-packages/{name}/**/*"):
            if path.is_file() and path.suffix != ".pyc":
                about = path.stat()
                found[str(path.relative_to(folder))] = about.st_size, about.st_mtime_ns
    return found


def size(folder):
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def imported(python, names):
    "Whether the packages can be imported in either order; the last line of what is said if not."
    theirs = "; ".join(f"import {name.replace('-', '_')}" for name in names)
    for program in (f"{theirs}; import autolora.cli", f"import autolora.cli; {theirs}"):
        try:
            run(python, "-c", program)
        except subprocess.CalledProcessError as error:
            return error.stderr.strip().splitlines()[-1]
    return "yes"


def tried(base, extra, names):
    "The row of one extra, installed into a copy of the environment in `base`."
    folder = base.with_name(extra)
    shutil.copytree(base, folder, symlinks=True, copy_function=os.link)
    python = folder / "bin" / "python"
    before, there, room = json.loads(run(python, "-c", LISTED)), files(folder), size(folder)
    start = time.monotonic()
    install(python, f"{ROOT}[{extra}]")
    seconds = time.monotonic() - start
    brought = {*json.loads(run(python, "-c", LISTED))} - {*before}
    torches = sorted(name for name in brought if name.startswith(("torch", "nvidia")))
    same = "as it was" if files(folder) == there else "CHANGED"
    try:
        checked = run(python, "-m", "pip", "check").strip()
    except subprocess.CalledProcessError as error:
        checked = error.stdout.strip()
    megabytes = round((size(folder) - room) / 1e6)
    row = [extra, len(brought), megabytes, round(seconds), ", ".join([same, *torches])]
    row += [checked.replace("\n", "; "), imported(python, names)]
    shutil.rmtree(folder)
    print(*row, sep=" | ", flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extras", nargs="*")
    args = parser.parse_args()
    known = requirements()
    with tempfile.TemporaryDirectory() as made:
        base = Path(made) / "base"
        venv.create(base, with_pip=True)
        install(base / "bin" / "python", *TORCH, ROOT)
        versions = json.loads(run(base / "bin" / "python", "-c", LISTED))
        rows = [tried(base, extra, known[extra]) for extra in args.extras or known]
    told = ", ".join(f"{name} {versions[name]}" for name in (*TORCH, "autolora"))
    python = ".".join(map(str, sys.version_info[:3]))
    words = f"`benchmarks/extras.py`, Python {python}, {told}; each extra alone."
    if not args.extras:
        PAGE.write_text(f"# Extras\n\n{words}\n\n{markdown(COLUMNS, rows)}\n")
    return any("CHANGED" in row[4] or row[6] != "yes" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
