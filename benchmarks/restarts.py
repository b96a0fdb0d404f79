"""What is seen of the lab after a restart of its kernel on a busy machine: so many restarts and Run
Alls in one JupyterLab, with so many processes at work beside it. Blank is a panel that shows
neither all pictures nor a sentence within a minute. Writes its section of faults.md.

python benchmarks/restarts.py (needs a Chromium, AUTOLORA_CHROMIUM or on the path)"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _faults import markdown, write_section
from lab import chromium

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
SEEN = """() => {
  const words = [...document.querySelectorAll('.autolora-trouble')].map(e => e.innerText.trim());
  const plots = [...document.querySelectorAll('.jp-OutputArea .autolora-plot')];
  const drawn = plots.filter(plot => plot.querySelector('.main-svg'));
  if (plots.length === 8 && drawn.length === 8) return 'pictures';
  return words.some(Boolean) ? 'a sentence' : null;
}"""


@contextlib.contextmanager
def busy(n):
    "So many processes that do nothing but work."
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def restart(page, server):
    "Restart the kernel, and clear what stood in the page."
    import test_lab as t

    page.get_by_role("menuitem", name="Edit", exact=True).click()
    page.locator(".lm-Menu-itemLabel").get_by_text("Clear Outputs of All Cells").click()
    page.locator(".autolora-lab").wait_for(state="detached")
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.locator(".lm-Menu-itemLabel").get_by_text("Restart Kernel…", exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.wait_for_timeout(5000)  # until then the old one may look idle
    t.until(lambda: t.idle_kernel(server), 120, "the new kernel")


def run_all(page):
    "Run all cells: what is seen (None: nothing), and after how many seconds."
    import test_lab as t

    item = page.locator(".lm-Menu-itemLabel").get_by_text("Run All Cells", exact=True)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    item.wait_for()
    start = time.monotonic()
    item.click()
    try:
        t.until(lambda: page.evaluate(SEEN), 60, "anything")
        return page.evaluate(SEEN), time.monotonic() - start
    except AssertionError:
        return None, 60.0


def restarts(times, load):
    "What was seen after each of so many restarts with so many others at work, and the load then."
    import test_lab as t
    from playwright.sync_api import sync_playwright

    folder = Path(tempfile.mkdtemp())
    with sync_playwright() as p, t.jupyterlab(folder) as (address, server):
        browser = p.chromium.launch(executable_path=chromium(), args=t.FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        page.set_default_timeout(120_000)
        t.open_notebook(page, address, server)
        with busy(load):
            for i in range(times):
                restart(page, server)
                seen, seconds = run_all(page)
                found = seen, seconds, os.getloadavg()[0]
                print(f"{i + 1}: {seen} after {seconds:.1f} s at load {found[2]:.1f}", flush=True)
                yield found
        browser.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--load", type=int, default=8, help="processes at work beside it")
    args = parser.parse_args()
    found = [*restarts(args.times, args.load)]
    blank = [seen for seen, _, _ in found if seen is None]
    seconds = [seconds for _, seconds, _ in found]
    median = statistics.median(seconds)
    words = (
        f"`benchmarks/restarts.py`: {len(found)} restarts of the kernel with Run All, {args.load} "
        f"processes at work beside it on {os.cpu_count()} cores, {len(blank)} blank. Run All to "
        f"all pictures: {median:.0f} s ({min(seconds):.0f} to {max(seconds):.0f})."
    )
    header = ["restart", "seen", "after (s)", "load"]
    rows = [
        (i, seen or "nothing", f"{s:.1f}", f"{load:.1f}")
        for i, (seen, s, load) in enumerate(found, 1)
    ]
    write_section("The lab, its kernel restarted", f"{words}\n\n{markdown(header, rows)}")
    return len(blank)


if __name__ == "__main__":
    sys.exit(main())
