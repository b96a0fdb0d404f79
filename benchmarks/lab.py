"""What the lab costs and how fast it answers: redraws, Pause and Stop, Run All to all pictures,
steps of the attack, frames of the playground, the kernel's memory over starts and stops, and the
training's slow-down, medians of 5.

python benchmarks/lab.py all of it; the parts with a page need a Chromium (AUTOLORA_CHROMIUM or on
the path) python benchmarks/lab.py --headless without a page

The slow-down is a ratio: the same run with the live panel and without, taken in turns, each epoch's
own seconds. A third run has neither panel nor angles: both together against it."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _harness import HERE, save

ROOT = Path(__file__).parent.parent
CALL = dict(
    backbone="robust_mini_gray",
    data="mnist5k",
    method="autolora",
    limit=1500,
    seed=0,
    lr=0.05,
    progress=False,
)


def spread(values, unit="s", digits=2):
    return (
        f"{statistics.median(values):.{digits}f} {unit} (n={len(values)}, "
        f"{min(values):.{digits}f} to {max(values):.{digits}f})"
    )


def settle(lab):
    """Wait until `lab` has drawn the end of a training and measured what the next would cost: that
    isn't what is timed."""
    while lab.follower.thread:
        time.sleep(0.1)
    lab.checker.timer.join()


def train(lab, folder, epochs, angles=True):
    """One run in `lab`'s trainer, or without a lab in a trainer of its own: its mean seconds an
    epoch, without the first."""
    from autolora import Run
    from autolora.runs.background import Trainer

    trainer = lab.trainer if lab else Trainer(folder.parent)
    trainer.start([CALL | {"epochs": epochs, "out": folder, "angles": angles}])
    if lab:
        lab.follower.soon()
    trainer.wait()
    return Run(folder).history.seconds[1:].mean()


def live(folder, epochs, redraws, shares):
    """`train` under a lab of its own; `redraws` gets how many there were, `shares` the kernel's
    processor time over the training's duration, which others at work here change little."""
    from autolora import Lab

    lab = Lab(folder.with_name(f"{folder.name}-lab"))
    settle(lab)
    seen = []
    lab.canvas.observe(seen.append, ["panels", "live"])
    spent, start = time.process_time(), time.perf_counter()
    try:
        return train(lab, folder, epochs)
    finally:
        shares.append((time.process_time() - spent) / (time.perf_counter() - start))
        settle(lab)
        lab.close()
        redraws.append(len(seen))


def slow_down(folder, rounds=5, epochs=8):
    """Round by round, seconds an epoch with the live panel over those without, and with panel and
    angles over those with neither; how many redraws there were; the kernel's share of a core."""
    panel, together, redraws, shares = [], [], [], []
    for i in range(rounds):
        runs = {
            "live": lambda i=i: live(folder / f"{i}-live", epochs, redraws, shares),
            "plain": lambda i=i: train(None, folder / f"{i}-plain", epochs),
            "bare": lambda i=i: train(None, folder / f"{i}-bare", epochs, angles=False),
        }
        names = list(runs)[i % 3 :] + list(runs)[: i % 3]
        found = {name: runs[name]() for name in names}
        panel.append(found["live"] / found["plain"])
        together.append(found["live"] / found["bare"])
    return panel, together, redraws, shares


def redraw_cost(folder, rounds=5):
    "Seconds of a redraw of two finished runs of 60 epochs, with nothing else at work."
    from autolora import Lab
    from autolora.runs.folder import create_run

    paths = []
    for method in ("autolora", "trades"):
        run = create_run(
            folder / f"long-{method}",
            {
                "method": method,
                "task": "made up",
                "seed": 0,
                "epochs": 60,
                "classes": list("0123456789"),
            },
        )
        for e in range(1, 61):
            run.log(
                "epoch",
                epoch=e,
                lr=0.05,
                schedule_lr=0.05,
                next_lr=0.05,
                lam1=0.1,
                lam2=5.0,
                sa=0.9,
                ra=0.8,
                n_val=100,
                angle=80.0,
                angle_natural=100.0,
                loss=1.0,
                ce_nat=0.1,
                ce_adv=0.4,
                kl=0.5,
                seconds=1.0,
                length_nat=1.0,
                length_adv=2.0,
                angle_layers={f"layer{i}.weight": 80.0 + i for i in range(40)},
                reason=1 if e % 20 == 0 else None,
                restored=e - 1 if e % 20 == 0 else None,
            )
        paths.append(run.path)
    lab, seconds = Lab(folder / "none", runs=paths), []
    for _ in range(rounds):
        start = time.perf_counter()
        lab.draw(anew=True)
        seconds.append(time.perf_counter() - start)
    lab.close()
    return seconds


def attack_rate(steps=200):
    "Steps a second of the attack against two models, with all that the page is sent."
    from autolora.lab.attack import Attack
    from autolora.lab.recorded import PLAIN, SHOWN

    attack = Attack({"robust": SHOWN[0], "plain": PLAIN})
    attack.hear({"do": "step"})
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(steps // 5):
            attack.hear({"do": "step"})
        rates.append(steps / 5 / (time.perf_counter() - start))
    return rates


def frame_rate(rounds=5):
    "Frames a second of the playground, three nets trained and drawn in each."
    sys.path.insert(0, str(ROOT / "tests"))
    from playwright.sync_api import sync_playwright
    from test_lab_faults import HOST

    from autolora.lab.playground import Playground

    rates = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page()
        page.evaluate(HOST, {"esm": Playground()._esm, "state": {}})
        page.get_by_role("button", name="Play").click()
        for _ in range(rounds):
            page.wait_for_timeout(2000)
            said = page.locator(".autolora-status").inner_text()
            rates.append(float(said.split(" frames")[0].split()[-1]))
        browser.close()
    return rates


def memory(folder, starts):
    "The kernel's resident memory in MB after each of so many trainings, started and stopped."
    from autolora import Lab

    lab, seen = Lab(folder / "memory"), []
    settle(lab)
    for i in range(starts):
        lab.trainer.start([CALL | {"epochs": 50, "out": folder / "memory" / f"{i}"}])
        lab.follower.soon()
        while not lab.trainer.position:
            time.sleep(0.05)
        lab.stop.click()
        lab.trainer.wait()
        settle(lab)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    lab.close()
    return seen


def chromium():
    "The path of a Chromium that starts."
    found = ["sh", ROOT / "tests" / "find_chromium.sh"]
    given = os.environ.get("AUTOLORA_CHROMIUM")
    return given or subprocess.run(found, capture_output=True, text=True).stdout.strip()


def page_times(rounds=5):
    """Seconds from Run All to the first picture and to all eight, from a click on Pause and on Stop
    to its word on the page, each several times in a fresh JupyterLab."""
    sys.path.insert(0, str(ROOT / "tests"))
    import test_lab as t
    from playwright.sync_api import sync_playwright

    first, full, pause, stop = [], [], [], []
    for _ in range(rounds):
        folder = Path(tempfile.mkdtemp())
        with sync_playwright() as p, t.jupyterlab(folder) as (address, server):
            browser = p.chromium.launch(executable_path=chromium(), args=t.FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 1400})
            first.append(t.open_notebook(page, address, server))
            start = time.time()
            drawn = page.locator(".autolora-plot > .plot-container")
            t.until(lambda: drawn.count() == 8, 60, "all pictures")  # noqa: B023
            full.append(first[-1] + time.time() - start)
            t.until(lambda: "attack steps" in t.words(page), 60, "the estimate")  # noqa: B023
            t.field(page, "Epochs", 300)
            t.begun(page)
            t.until(lambda: sum(t.points(page, "lr")) >= 2, 120, "training")  # noqa: B023
            for times, hint, word in (
                (pause, t.PAUSE, "paused"),
                (None, t.RESUME, "running"),
                (stop, t.STOP, "stopped"),
            ):
                start = time.time()
                t.press(page, hint)
                page.wait_for_function(
                    "word => document.querySelector('.autolora-lab').innerText.includes(`AutoLoRa: "
                    "${word}`)",
                    arg=word,
                    polling=10,
                )
                if times is not None:
                    times.append(time.time() - start)
                page.wait_for_timeout(1500)
            browser.close()
    return first, full, pause, stop


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--headless", action="store_true", help="leave the page out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--starts", type=int, default=30, help="trainings for the memory")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of the JSON results"
    )
    args, folder = parser.parse_args(), Path(tempfile.mkdtemp())
    print("a redraw of two runs of 60 epochs:", spread(redraw_cost(folder), digits=3))
    print("steps of the attack a second:", spread(attack_rate(), "", 0))
    used = memory(folder, args.starts)
    print(f"MB of the kernel after each of {len(used)} trainings:", [round(mb) for mb in used])
    panel, together, redraws, shares = slow_down(folder, args.rounds, args.epochs)
    print("epoch seconds with the live panel over without:", spread(panel, "", 3))
    print("epoch seconds with panel and angles over without:", spread(together, "", 3))
    print(f"redraws in a training: {spread(redraws, '', 0)}")
    print(f"the kernel's share of a core: {spread(shares, '', 3)}")
    save(
        args.results,
        "lab",
        f"The lab: an AutoLoRa epoch of {CALL['backbone']} on {CALL['limit']:,} images of "
        f"{CALL['data']}",
        ratios={
            "recording": together,
            "the live panel alone: seconds an epoch over those without": panel,
        },
        notes=[f"Redraws in a training: {spread(redraws, '', 0)}. Without: no panel, no angles."],
    )
    if args.headless:
        return
    print("frames of the playground a second:", spread(frame_rate(), "", 0))
    told = ("Run All to the first picture", "Run All to all pictures", "Pause", "Stop")
    for what, seconds in zip(told, page_times(args.rounds), strict=True):
        print(f"{what}: {spread(seconds)}")


if __name__ == "__main__":
    main()
