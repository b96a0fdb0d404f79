"""Many runs in one process, each stopped at a random moment: memory, open files, threads, and how
soon a start and a stop are obeyed, ten runs at a time.

python benchmarks/soak.py --runs 100
python benchmarks/soak.py --minutes 60    the lab's own buttons are pressed, for so long

The images are files, so that each run has a thread that reads ahead: of 224 pixels, in batches of
128, as they were when a Stop left 285 MB behind."""

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from _faults import markdown, write_section
from _harness import memory
from PIL import Image
from torch import nn

from autolora import Lab
from autolora.runs.jobs import Job, do
from autolora.train.callbacks import Control


class Small(nn.Module):
    "A net that costs less than reading its images."

    def __init__(self, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


def photographs(folder, size, n):
    "A folder of `n` noisy JPEG images of three classes."
    rng = np.random.default_rng(0)
    for i in range(n):
        path = Path(folder) / "abc"[i % 3] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def wait(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.005)


class Trained:
    "Starts and stops a training in a thread of this process."

    def __init__(self, folder, data, batch_size):
        self.folder = Path(folder)
        self.call = {"backbone": Small(), "data": str(data), "method": "at", "lr": 0.01, "steps": 1}
        self.call |= {"epochs": 1000, "batch_size": batch_size, "angles": False, "progress": False}
        self.number = 0

    @property
    def busy(self):
        return self.thread.is_alive()

    @property
    def position(self):
        return self.control.position

    def start(self):
        self.number += 1
        self.control = Control()
        self.job = Job(self.call | {"out": self.folder / str(self.number)})
        self.thread = threading.Thread(target=do, args=(self.job, self.control))
        self.thread.start()

    def stop(self):
        self.control.stop()

    def clear(self):
        self.thread.join()
        shutil.rmtree(self.folder / str(self.number))


class Pressed:
    "The same by the lab's buttons, in the process that the lab starts."

    def __init__(self, folder, data, batch_size):
        self.folder = Path(folder)
        self.lab = Lab(folder, backbones={"small": Small()})
        self.trainer = self.lab.trainer
        wanted = {"backbone": "small", "data": str(data), "epochs": "1000", "autoattack": 0}
        wanted["lr"] = "0.01"  # a range test would take minutes on such images
        for name, value in wanted.items():
            self.lab.controls.fields[name].control.value = value
        for box in self.lab.controls.fields["methods"].control.children[1:]:
            box.value = False

    @property
    def busy(self):
        return self.trainer.busy

    @property
    def position(self):
        return self.trainer.position

    @property
    def job(self):
        return self.trainer.jobs[0]

    def start(self):
        self.lab.start.click()
        assert self.busy, self.lab.state.value

    def stop(self):
        self.lab.stop.click()

    def clear(self):
        wait(lambda: self.lab.follower.thread is None, "the last pictures")
        self.lab.runs.value = ()
        self.lab.runs.options = ()
        shutil.rmtree(self.folder)
        self.folder.mkdir()


def cycle(site, rng):
    "One start and one stop: what is left behind, and the seconds that both took."
    start = time.monotonic()
    site.start()
    wait(lambda: site.position or not site.busy, "a first step")
    assert site.busy, site.job.message
    began = time.monotonic() - start
    time.sleep(rng.uniform(0, 0.5))
    start = time.monotonic()
    site.stop()
    wait(lambda: not site.busy, "the end")
    ended = time.monotonic() - start
    assert site.job.state == "stopped", site.job.message
    site.clear()
    return {
        "memory (MB)": memory("VmRSS") / 1e6,
        "open files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "to the first step (s)": began,
        "to the end (s)": ended,
    }


def soak(site, enough, seed=0):
    "What `cycle` found, again and again until `enough(found)`."
    rng = random.Random(seed)
    found = []
    while not enough(found):
        found.append(cycle(site, rng))
    return found


def table(found, parts=10):
    "The means of so many parts of what was `found`, in order, as a Markdown table."
    bounds = [round(i * len(found) / parts) for i in range(parts + 1)]
    rows = []
    for low, high in zip(bounds, bounds[1:], strict=False):
        values = [mean(row[name] for row in found[low:high]) for name in found[0]]
        rows.append([f"{low + 1} to {high}", *(f"{value:.4g}" for value in values)])
    return markdown(["runs", *found[0]], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data = photographs(Path(folder) / "photographs", args.size, 4 * args.batch_size)
        kind = Pressed if args.minutes else Trained
        site = kind(Path(folder) / "runs", data, args.batch_size)
        if args.minutes:
            found = soak(site, lambda found: time.monotonic() - begun > 60 * args.minutes)
        else:
            found = soak(site, lambda found: len(found) == args.runs)
    seconds = time.monotonic() - begun
    name = "The lab, runs started and stopped" if args.minutes else "Runs in one process"
    words = (
        f"`benchmarks/soak.py`: {len(found)} runs started and stopped in {seconds / 60:.0f} min,"
    )
    words += f" images of {args.size} pixels read from files, batches of {args.batch_size}."
    write_section(name, f"{words}\n\n{table(found)}")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
