"""What every benchmark shares: contestants timed in turns, the machine's line, the peers' folder,
results on disk."""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
from _report import write_results

from autolora.core.machine import versions

HERE = Path(__file__).parent
PEERS = HERE / ".peers"


def clock(call):
    "Wall seconds of `call()`; a GPU's queue is empty before and after."
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def turns(contestants, rounds, warm=1):
    """name -> seconds in each of `rounds`: every contestant once a round, each round beginning with
    another one, after `warm` calls unmeasured."""
    for call in contestants.values():
        for _ in range(warm):
            call()
    names, times = list(contestants), {name: [] for name in contestants}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(clock(contestants[name]))
    return times


def ratios(times, ours, other):
    "How many times as long as `ours` the `other` took, round by round."
    return [theirs / mine for mine, theirs in zip(times[ours], times[other], strict=True)]


def use_peers():
    """Put the pinned peers on the path, last, their progress bars off; install them first where
    peers.txt is newer than what is there."""
    wanted, stamp = HERE / "peers.txt", PEERS / "ready"
    if not stamp.is_file() or stamp.stat().st_mtime < wanted.stat().st_mtime:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-qq",
            "--disable-pip-version-check",
            "--no-deps",
            "--upgrade",
            "--target",
            PEERS,
            "-r",
            wanted,
        ]
        if subprocess.run(command).returncode == 0:
            stamp.touch()
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    os.environ.setdefault("TQDM_DISABLE", "1")


def peer(module):
    """The peer's `module`, or the reason it can't be measured, as `(module, reason)`, one of them
    None."""
    from autolora.core.machine import import_torchvision

    use_peers()
    import_torchvision()
    try:
        return importlib.import_module(module), None
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def available(makers):
    """`(contestants, reasons)` from name -> function that makes a contestant; one that can't be
    made is left out and its reason told."""
    made, reasons = {}, {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except ImportError as error:
            reasons[name] = str(error)
    return made, reasons


def processor():
    "The processor's name, as far as the system tells it."
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    )
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )


def memory(field):
    """Bytes of main memory of this process (Linux): "VmRSS", held now, or "VmHWM", the most since
    the start or since `forget_peak`.

    Not `ru_maxrss`, which a child process inherits from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak():
    "Begin to count this process's peak memory anew."
    Path("/proc/self/clear_refs").write_text("5")


def machine():
    "What a section was measured on and with."
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=HERE,
        capture_output=True,
        text=True,
    ).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_initialized() else None
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + f", {gpu}" * bool(gpu),
        "versions": versions(),
        "date": date.today().isoformat(),
        "commit": commit,
    }


def options(doc, rounds=5, **more):
    """The parsed command line: --rounds, --results, and `more`, name -> default value (a list: one
    or several)."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=rounds,
        help="of which the median is taken (default %(default)s)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=HERE / "results",
        help="folder of the JSON results (default benchmarks/results)",
    )
    for name, default in more.items():
        several = isinstance(default, list)
        kind = str if default is None else type(default[0] if several else default)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=default,
            nargs="+" if several else None,
            help="(default %(default)s)",
        )
    return parser.parse_args()


def save(
    folder,
    script,
    title,
    times=None,
    work=None,
    ratios=None,
    columns=None,
    table=None,
    missing=None,
    notes=(),
):
    """Write one section into `script`.json of `folder`, in the place of an older one of that
    `title`, and results.md beside the folder.

    `times`: name -> seconds a round. `work`: images in one call, for images/s. `ratios`: key ->
    values a round; the keys of `_report.TARGETS` appear there. `columns`: heading -> {name: text}.
    `table`: rows of text, the header first. `missing`: name -> why it was not measured."""
    section = {
        "title": title,
        "times": times or {},
        "work": work,
        "ratios": ratios or {},
        "columns": columns or {},
        "table": table or [],
        "missing": missing or {},
        "notes": list(notes),
        **machine(),
    }
    path = folder / f"{script}.json"
    folder.mkdir(parents=True, exist_ok=True)
    others = json.loads(path.read_text()) if path.is_file() else []
    path.write_text(
        json.dumps(
            sorted(
                [s for s in others if s["title"] != title] + [section], key=lambda s: s["title"]
            ),
            indent=1,
        )
        + "\n"
    )
    write_results(folder)
    print(f"{title}: written to {path}", flush=True)
