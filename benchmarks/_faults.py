"""The page of counts, benchmarks/faults.md: a section a script, each replaced by itself alone; and
the clock of a core that nobody else uses."""

import re
import time
from pathlib import Path

PAGE = Path(__file__).parent / "faults.md"
HEAD = """# What was broken on purpose, and what came of it

Each section is written by the script that it names, with the counts of what it has done so far; a
script that has no section here has not been run on this version.
"""


def markdown(header, rows):
    "A Markdown table of strings."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def write_section(title, text, page=PAGE):
    "Put `text` under the heading `title` of the `page`, in the place of what stood there."
    whole = page.read_text(encoding="utf-8") if page.is_file() else HEAD
    parts = dict(re.findall(r"(?ms)^## (.+?)\n(.*?)(?=^## |\Z)", whole))
    parts[title] = f"\n{text.strip()}\n\n"
    sections = "".join(f"## {name}\n{body}" for name, body in sorted(parts.items()))
    page.write_text(f"{HEAD}\n{sections.strip()}\n", encoding="utf-8")


def clock(process="thread-self"):
    """Seconds on the clock, less those for which the (first thread of the) `process` could have run
    and others held the cores."""
    waited = Path(f"/proc/{process}/schedstat").read_text().split()[1]
    return time.monotonic() - int(waited) / 1e9
