"""Thirty pages of one classroom, opened one after the other in a real browser: the time to each
one's pictures, and what the process that serves them needs. Writes its section of faults.md.

python benchmarks/classroom.py (needs a Chromium, AUTOLORA_CHROMIUM or on the path)"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _faults import write_section
from lab import chromium

DRAWN = """() => [...document.querySelectorAll('.autolora-plot')]
    .filter(plot => plot.querySelector('.main-svg')).length === 8"""


def address_in(said):
    "The address that the command wrote into the file `said`."
    deadline = time.monotonic() + 120
    while not (found := re.search(r"The classroom is at (\S+)", said.read_text())):
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)
    return found[1]


def spent(process):
    "Processor seconds of a process so far, and its resident memory in MB."
    ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    seconds = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
    return seconds, pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def opened(browser, address):
    "A new page, and the seconds until it has all pictures (None: it stayed blank)."
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    start = time.monotonic()
    page.goto(address)
    try:
        page.wait_for_function(DRAWN, timeout=60_000)
        return page, time.monotonic() - start
    except Exception as error:
        print(error)
        return page, None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=30)
    parser.add_argument("--rest", type=float, default=30, help="seconds that they stay open")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    from autolora.lab.recorded import SHOWN

    said = Path(tempfile.mkdtemp()) / "said"
    command = [sys.executable, "-m", "autolora", "classroom", *SHOWN, "--port", "8877"]
    with said.open("w") as log, subprocess.Popen(command, stderr=log) as server:
        address = address_in(said)
        begun, _ = spent(server)
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            pages = [opened(browser, address) for _ in range(args.pages)]
            after, _ = spent(server)
            pages[0][0].wait_for_timeout(1000 * args.rest)
            later, memory = spent(server)
            still = sum(page.evaluate(DRAWN) for page, _ in pages)
            browser.close()
        server.terminate()
    seconds = [s for _, s in pages if s is not None]
    words = (
        f"`benchmarks/classroom.py`: {len(pages)} pages open on two runs of 22 epochs, "
        f"{len(pages) - still} blank. A page has all its pictures after "
        f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), the "
        f"others open beside it. The process that serves them took {after - begun:.1f} s of a core "
        f"for all of them, {100 * (later - after) / args.rest:.1f} % of a core while they stayed "
        f"open and asked each second, and {memory:.0f} MB."
    )
    print(words)
    write_section("A classroom of thirty", words)
    return len(pages) - still


if __name__ == "__main__":
    sys.exit(main())
