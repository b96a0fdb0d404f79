"""Which alarm is raised for which model: a confusion table over models that only look robust and
honest ones, among them the published small nets.

python benchmarks/alarms.py

Each model is asked as `evaluate` asks it, on 32 images that it gets right, within the threat that
it is made for. A faulty model has to raise its own alarm (**bold**), and may raise others; an
honest one has to raise none."""

from pathlib import Path

import _small_nets
import torch
from _faulty import faulty, honest

from autolora.core.seeds import isolated_rng
from autolora.core.threat import linf, parse_threat
from autolora.robust.alarms import ALARMS, Look
from autolora.robust.attacks import is_right, own_random

N = 32
TARGET = Path(__file__).parent / "results" / "alarms.md"


def published():
    "The published nets for which there are images: name -> (model, x, y, threat)."
    for name, entry in _small_nets.described().items():
        found = _small_nets.images(name)
        if found:
            yield name, (_small_nets.net(name), *found, linf(entry["eps_linf"] or 0.1))


def raised(model, x, y, threat):
    "The names of the alarms that `model` raises."
    with isolated_rng(0), torch.no_grad():
        right = is_right(model(x), y) | is_right(model(x), y)  # one of them answers in turns
    with own_random(model, x):
        look = Look(model, x[right][:N], y[right][:N], parse_threat(threat))
        return [name for name, alarm in ALARMS.items() if alarm(look)]


def table():
    "Rows of strings, a model each."
    names = list(ALARMS)
    yield ["model", *(name.replace("_", " ") for name in names)]
    yield ["---"] * (1 + len(names))
    models = {name: (alarm, *rest) for name, (alarm, *rest) in faulty().items()}
    models |= {f"honest: {name}": (None, *rest) for name, rest in honest().items()}
    models |= {f"honest: {name}": (None, *rest) for name, rest in published()}
    for name, (wanted, *rest) in models.items():
        found = raised(*rest)
        marks = {alarm: "**yes**" if alarm == wanted else "yes" for alarm in found}
        missed = {wanted: "MISSED"} if wanted and wanted not in found else {}
        yield [name, *((missed | marks).get(alarm, "") for alarm in names)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    lines = []
    for row in table():
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    TARGET.write_text("\n".join([__doc__.strip(), "", *lines]) + "\n", encoding="utf-8")
