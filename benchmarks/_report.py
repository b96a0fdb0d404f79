"""results.md from the JSON files of benchmarks/results: the targets beside what was measured, then
every section."""

import json
import statistics
from pathlib import Path

# (what, bound, "least" or "most", the key under which a script leaves its ratios)
TARGETS = [
    (
        "PGD-10, `robust_mini_rgb`, batch 128: images/s over torchattacks",
        2.2,
        "least",
        "pgd_torchattacks",
    ),
    ("PGD-10, `robust_mini_rgb`, batch 128: images/s over foolbox", 2.5, "least", "pgd_foolbox"),
    ("PGD-10, `robust_mini_rgb`, batch 128: images/s over ART", 3, "least", "pgd_art"),
    ("share of the measured convolution ceiling in that loop", 0.65, "least", "pgd_ceiling"),
    (
        "one AutoLoRa step, ResNet-18 at 32x32, over the plain published step",
        1.5,
        "least",
        "step_resnet18",
    ),
    (
        "one AutoLoRa step, `robust_mini_rgb`, batch 128, over the plain published step",
        1.5,
        "least",
        "step_robust_mini_rgb",
    ),
    (
        "a whole AutoLoRa epoch over the plain published protocol, CIFAR's proportions",
        2.0,
        "least",
        "epoch_cifar",
    ),
    (
        "a whole AutoLoRa epoch over the plain published protocol, mnist5k",
        2.0,
        "least",
        "epoch_mnist5k",
    ),
    (
        "seconds of an AutoLoRa epoch over a TRADES epoch, same loop, CIFAR's proportions",
        1.15,
        "most",
        "trades_cifar",
    ),
    (
        "seconds of an AutoLoRa epoch over a TRADES epoch, same loop, mnist5k",
        1.15,
        "most",
        "trades_mnist5k",
    ),
    (
        "AutoAttack standard over pyautoattack fed the plain model, `robust_mini_gray`",
        2,
        "least",
        "autoattack, robust_mini_gray",
    ),
    (
        "AutoAttack standard over pyautoattack fed the plain model, `robust_mini_rgb`",
        1.8,
        "least",
        "autoattack",
    ),
    (
        "2 processes of 1 thread over 1 process of 1 thread: throughput, digits",
        1.8,
        "least",
        "processes_2_digits",
    ),
    (
        "2 processes of 1 thread over 1 process of 1 thread: throughput, mnist5k",
        1.8,
        "least",
        "processes_2_mnist5k",
    ),
    (
        "lab, history and angle recording together: seconds an epoch over those without",
        1.05,
        "most",
        "recording",
    ),
    (
        "peak memory of a step over the plain step, ResNet-18 at 32x32",
        1.0,
        "most",
        "memory_resnet18",
    ),
    (
        "peak memory of a step over the plain step, `robust_mini_rgb`, batch 128",
        1.0,
        "most",
        "memory_robust_mini_rgb",
    ),
    (
        "GPU: the AutoLoRa step over the plain published step in fp32, ResNet-18, batch 256",
        3,
        "least",
        "step_resnet18_cuda",
    ),
    (
        "GPU: the AutoLoRa step over the plain published step in fp32, ResNet-50 at 224",
        2.5,
        "least",
        "step_resnet50_cuda",
    ),
]


def number(value):
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def spread(values):
    "Median and range of `values`, with their count."
    if len(values) == 1:
        return f"{number(values[0])} (once)"
    return (
        f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))}, "
        f"n={len(values)})"
    )


def table(header, rows):
    "A Markdown table."
    return "\n".join(
        "| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] * len(header), *rows)
    )


def verdict(values, bound, side):
    "Whether the median keeps the bound."
    median = statistics.median(values)
    return "yes" if (median >= bound if side == "least" else median <= bound) else "no"


def targets(sections):
    "The table of what must be reached; what no section measured is said to be so."
    measured = {key: values for section in sections for key, values in section["ratios"].items()}

    def row(what, bound, side, key):
        values = measured.get(key)
        return [
            what,
            f"at {side} {number(bound)}",
            spread(values) if values else "not measured",
            verdict(values, bound, side) if values else "",
        ]

    return table(
        ["", "wanted", "measured: median (range, rounds)", "reached"],
        [row(*target) for target in TARGETS],
    )


def contestants(section):
    "The section's table of seconds, fastest first."
    columns, work = section["columns"], section["work"]
    rows = []
    for name, seconds in sorted(
        section["times"].items(), key=lambda item: statistics.median(item[1])
    ):
        rate = [number(work / statistics.median(seconds))] if work else []
        rows.append(
            [name, spread(seconds), *rate, *(column.get(name, "") for column in columns.values())]
        )
    return table(
        ["", "seconds: median (range, rounds)", *["images/s"] * bool(work), *columns], rows
    )


def block(section):
    "One section as Markdown."
    parts = [
        f"## {section['title']}",
        f"{section['machine']}; {', '.join(f'{k} {v}' for k, v in section['versions'].items())}; "
        f"{section['date']}, commit {section['commit']}.",
    ]
    if section["times"]:
        parts.append(contestants(section))
    if section["table"]:
        parts.append(table(section["table"][0], section["table"][1:]))
    named = {key: what for what, _, _, key in TARGETS}
    parts += (
        [
            "\n".join(
                f"- {named.get(key, key)}: {spread(values)}"
                for key, values in section["ratios"].items()
            )
        ]
        if section["ratios"]
        else []
    )
    parts += (
        ["\n".join(f"- {name}: not measured ({why})" for name, why in section["missing"].items())]
        if section["missing"]
        else []
    )
    return "\n\n".join(parts + list(section["notes"]))


def render(sections):
    "The text of results.md."
    head = (
        "<!-- Written by the benchmarks from benchmarks/results/*.json: run them, don't edit this. "
        "-->\n\n# Benchmarks\n\nEvery contestant of a section is measured in turns in one process, "
        "each round beginning with another one; a ratio is taken within a round. `make bench` "
        "repeats all of it."
    )
    return (
        "\n\n".join([head, "## What must be reached", targets(sections), *map(block, sections)])
        + "\n"
    )


def write_results(folder):
    "Write results.md beside `folder` from the JSON files in it."
    folder = Path(folder)
    sections = [
        section
        for path in sorted(folder.glob("*.json"))
        for section in json.loads(path.read_text())
    ]
    (folder.parent / "results.md").write_text(render(sections))
