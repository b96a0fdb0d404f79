"""What damaged files do: those of a small run, of data and of checkpoints in every format are
mutated and used as a person would.

python benchmarks/fuzz.py --n 10000 --seed 0 --log trials.jsonl

Counts, by file or format: mutated files, right answers, errors of our own, tracebacks, hangs (over
ten seconds on the clock, less those for which other processes held the cores: as on an idle one).
Nothing may run that a file brings, no markup of it may reach a page as markup, weights that are
taken must be the run's own, and images that are taken must be images.

Mutations that stand in the --log are not made again, so that a campaign can be made in pieces, of
--minutes each."""

import argparse
import contextlib
import copy
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from _data_files import sources
from _faults import clock, markdown, write_section
from crashes import small_task
from safetensors.torch import load_file, save_file

from autolora import AutoLoRaError, Run, finetune
from autolora.lab.painter import Easel
from autolora.lab.pictures import outcome
from autolora.runs.checking import check
from autolora.runs.preparation import prepare
from autolora.runs.study import Study
from autolora.show.card import write_card
from autolora.show.report import write_report
from autolora.train.learner import Learner
from autolora.train.state import load_checkpoint

MARKER = "<img src=x onerror=alert(1)>"
SETTINGS = {"epochs": 2, "steps": 1, "progress": False, "lr": 0.02}
PATIENCE = 10  # seconds on the clock of an idle core


class Hang(BaseException):
    "A use took longer than `PATIENCE`."


def material(folder):
    "Two small finished runs in `folder`, of other seeds, that have their checkpoints still."
    task = small_task()
    for seed in (0, 1):
        run = folder / f"run{seed}"
        finetune("robust_mini_gray", task, seed=seed, out=run, test=False, **SETTINGS)
        state = (run / "resume.pt").read_bytes()
        finetune("robust_mini_gray", task, seed=seed, out=run, resume=True, **SETTINGS)
        (run / "resume.pt").write_bytes(state)
    run = Run(folder / "run0")
    lr = [1e-4, 1e-3, 1e-2]
    run.log("range_test", lr=lr, loss=[2.3, 2.2, 2.0], chosen=0.01, why="it fell", seconds=1.0)
    return folder / "run0", folder / "run1"


# --- mutations -----------------------------------------------------------------------------------

BAD = [
    *(None, True, "", "x", MARKER, "</script>" + MARKER, "\x1b[2J\x07", "a\nb```\n# c", "../../x"),
    *(-1, 0, 0.5, 3, 1e308, -1e308, 10**15, 10**30, [], {}, [[]], [MARKER], {"a": MARKER}, "8/255"),
    *([1, "a"], [None], {"": None}, "ÿ" * 300, "\ud800", [0.1] * 7, [1, 2, 3, 4]),
]
RAW = ["1e999", "NaN", "-Infinity", "9" * 400, "[" * 5000, '"\\ud800"', "tru", "{}}"]


def leaves(value, path=()):
    "The paths of all parts of a JSON value."
    yield path
    if not isinstance(value, (dict, list)):
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(part, (*path, key))


def replaced(value, path, new):
    "A copy of `value` with `new` at `path`; without that part where `new` is `KeyError`."
    if not path:
        return new
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    if new is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return made


def mutated_json(text, rng):
    "A JSON text with one to three parts changed or gone; some by what no JSON writer would write."
    value = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice([p for p in leaves(value) if p] or [()])
        value = replaced(value, path, KeyError if path and rng.random() < 0.2 else rng.choice(BAD))
        if not isinstance(value, (dict, list)):
            break
    if rng.random() < 0.15 and isinstance(value, dict) and value:
        value[rng.choice(list(value))] = "@RAW@"
        return json.dumps(value).replace('"@RAW@"', rng.choice(RAW))
    return json.dumps(value)


def mutated_log(text, rng):
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    kind = rng.random()
    if kind < 0.7:
        lines[at] = mutated_json(lines[at], rng)
    elif kind < 0.8:
        lines[at] = rng.choice(["3", "[]", "null", '"a"', "", *RAW])
    elif kind < 0.9:
        lines[at] = lines[at][: rng.randrange(len(lines[at]))]
    else:
        lines = rng.choice([lines[:at], lines[at:], lines[::-1], lines + lines, [lines[at]] * 3])
    return "\n".join(lines) + rng.choice(["\n", "\n", ""])


def mutated_bytes(data, rng):
    at = rng.randrange(max(1, len(data)))
    kind = rng.randrange(6)
    if kind == 0:
        return b""
    if kind == 1:
        return data[:at]
    if kind == 2:
        return rng.randbytes(rng.randrange(1, 300))
    if kind == 3:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at + 8 :]
    if kind == 4:
        return data[:at] + data[min(len(data), at + rng.randrange(1, 2000)) :]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(min(len(data), rng.choice([64, 2000, len(data)])))] ^= (
            1 << rng.randrange(8)
        )
    return bytes(changed)


def mutated_arrays(data, rng):
    arrays = dict(np.load(io.BytesIO(data)))
    name = rng.choice(sorted(arrays))
    old = np.atleast_1d(arrays[name])
    figures = old if old.dtype.kind in "biuf" else np.arange(old.size).reshape(old.shape)
    with np.errstate(all="ignore"):
        changed = [figures * np.nan, figures.astype(complex), figures - 5, figures * 1e300]
    new = [
        *(old[:0], old[..., None], old[:1], old.astype(str), *changed),
        *(np.zeros(()), np.zeros((3, 0)), np.array([{}, 1], dtype=object)),
        *(np.zeros((8, 9, 16, 16)), figures.astype(">f4"), figures > 0, np.zeros(2**25, np.uint8)),
        None,
    ]
    arrays[name] = rng.choice(new)
    if arrays[name] is None:
        del arrays[name]
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    if rng.random() < 0.15:  # a head that promises more than there is
        lying = io.BytesIO()
        with zipfile.ZipFile(lying, "w") as pack:
            head = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }"
            body = b"\x93NUMPY\x01\x00" + len(head + "\n").to_bytes(2, "little") + head.encode()
            pack.writestr(f"{name}.npy", body + b"\n" + bytes(64))
        return lying.getvalue()
    return out.getvalue()


def other_tensors(tensors, rng):
    "`tensors` with one of them, or all, of another shape, kind or content."
    tensors = {name: v.clone() for name, v in tensors.items()}
    name = rng.choice(sorted(tensors))
    old = tensors[name]
    kind = rng.randrange(8)
    if kind == 0:
        return {k: v * torch.nan if v.is_floating_point() else v for k, v in tensors.items()}
    if kind == 1:
        del tensors[name]
    elif kind == 2:
        tensors[name + "x"] = old.clone()
    else:
        new = [old.flatten()[:1].clone(), old.double(), torch.zeros(3, 3), old + 1, old.bool()]
        tensors[name] = new[kind - 3]
    return tensors


def mutated_tensors(path, other, rng):
    "Another file of weights in the place of `path`: of `other`, or with tensors changed."
    from safetensors import safe_open

    if rng.random() < 0.2:
        return (other / path.name).read_bytes()
    with safe_open(path, "pt") as file:
        told = file.metadata()
    told = rng.choice([told, told, {}, told | {"sha256": "0"}, {"run": "x"}])
    made = path.with_name("made.safetensors")
    save_file(other_tensors(load_file(path), rng), made, told)
    content = made.read_bytes()
    made.unlink()
    return content


class _Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def mutated_state(path, other, rng, trap):
    "Another checkpoint in the place of `path`."
    kind = rng.randrange(6)
    if kind == 0:
        return (other / path.name).read_bytes()
    if kind == 1:
        return pickle.dumps(_Code(trap))
    out = io.BytesIO()
    state = torch.load(path, weights_only=True)
    if kind == 2:
        state = rng.choice([[], 3, "x", None, {}, torch.zeros(3), {"weights": {}}])
    elif kind == 3:
        state["method"] = _Code(trap)
    else:
        paths = [p for p in leaves(state) if p]
        state = replaced(
            state, rng.choice(paths), rng.choice([*BAD[:-6], torch.zeros(2), KeyError])
        )
    torch.save(state, out)
    return out.getvalue()


def in_its_place(path, rng):
    "Something else than a file under the name `path`."
    path.unlink()
    kind = rng.randrange(4)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path.name)
    else:
        path.symlink_to("nowhere")


def mutated_pickle(data, rng, trap):
    "Another pickle in the place of one."
    if rng.random() < 0.4:
        return pickle.dumps(_Code(trap))
    odd = [[], 3, "x", None, {}, {b"data": 3}, {b"data": np.zeros((2, 2)), b"labels": "x"}, BAD]
    return pickle.dumps(rng.choice(odd), protocol=rng.randrange(6))


def mutated_tuple(rng, trap):
    "Something else that `torch.save` wrote."
    y = torch.arange(6)
    odd = [[], 3, "x", None, {}, (y, y), (torch.zeros(6, 3, 4, 4), y - 3), (y.float() / 0, y)]
    odd += [_Code(trap), {"state_dict": _Code(trap)}, (torch.zeros(6, 1, 4, 4), y[:2]), {"a": {}}]
    out = io.BytesIO()
    torch.save(rng.choice(odd), out)
    return out.getvalue()


def mutate_data(path, rng, trap):
    "Change the file `path` of data or of a checkpoint."
    kind = rng.random()
    if kind < 0.04:
        return in_its_place(path, rng)
    data = path.read_bytes()
    made = mutated_bytes(data, rng)
    if kind > 0.6 and path.suffix == ".npz":
        made = mutated_arrays(data, rng)
    elif kind > 0.6 and path.suffix == ".pt":
        made = mutated_tuple(rng, trap)
    elif kind > 0.6 and path.suffix == ".csv":
        lines = data.decode().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = rng.choice([str(rng.choice(BAD)), f"{lines[at]},{MARKER}", "../../x.png,a"])
        made = "\n".join(lines).encode("utf-8", "surrogatepass")
    elif kind > 0.6 and not path.suffix:
        made = mutated_pickle(data, rng, trap)
    path.write_bytes(made)


FILES = ["config.json", "report.json", "events.jsonl", "examples.npz"]
FILES += ["model.safetensors", "branch.safetensors", "resume.pt"]


def mutate(folder, name, other, rng, trap):
    "Change the file `name` of the run in `folder`."
    path = folder / name
    data = path.read_bytes()
    kind = rng.random()
    if kind < 0.04:
        return in_its_place(path, rng)
    if kind < 0.3:
        made = mutated_bytes(data, rng)
    elif name == "events.jsonl":
        made = mutated_log(data.decode(), rng).encode("utf-8", "surrogatepass")
    elif name.endswith(".json"):
        made = mutated_json(data.decode(), rng).encode("utf-8", "surrogatepass")
    elif name.endswith(".npz"):
        made = mutated_arrays(data, rng)
    elif name.endswith(".pt"):
        made = mutated_state(path, other, rng, trap)
    else:
        made = mutated_tensors(path, other, rng)
    path.write_bytes(made)


# --- uses ----------------------------------------------------------------------------------------


def no_markup(text):
    assert MARKER not in text, "markup from a file stands in a page"


def outside_code(markdown):
    "A Markdown text without its blocks of code, which are shown as they stand."
    return re.sub(r"(?ms)^(`{3,})\n.*?^\1\n", "", markdown)


def look(folder, _):
    run = Run.open(folder)
    _ = run.history, run.damaged_lines, run.report, run.finished, run.last("end")
    no_markup(run._repr_markdown_())
    outcome(run)


def draw(folder, _):
    order = {"folders": [str(folder)], "opened": ["accuracy", "losses", "scales"], "anew": True}
    found = Easel().paint(order | {"image": 0, "scale": 0.4, "upto": None, "work": str(folder)})
    no_markup(found["tables"])
    for _, figure, table in found["panels"]:
        no_markup(table)
        no_markup(figure)


def report(folder, _):
    run = Run.open(folder)
    no_markup(write_report(run).read_text())
    no_markup(outside_code(write_card(run).read_text()))
    assert "\x1b" not in (folder / "card.md").read_text()


def weights(folder, wanted):
    run = Run.open(folder)
    found = run.model.state_dict()
    assert all(torch.equal(found[name], v) for name, v in wanted["model"].items())
    branch = run.branch
    if branch is not None:
        found = branch.state_dict()
        assert all(torch.equal(found[name], v) for name, v in wanted["branch"].items())


def resume(folder, wanted):
    learner = wanted["learner"]
    learner.run = Run.open(folder)
    learner.epoch = -1
    load_checkpoint(learner)
    assert learner.epoch in (-1, 2), "a checkpoint of another stand was taken"


def study(folder, wanted):
    found = Study(wanted["study"])
    table = found.table
    assert len(table) == 2 and (table.state == "finished").any(), "one run took the others along"


def mend(folder, _):
    check(folder)
    check(folder)


USES = {"look": look, "draw": draw, "report": report, "weights": weights, "resume": resume}
USES |= {"study": study, "check": mend}
OFTEN = {  # which uses a mutation of a file is tried with, and in which share of cases
    "config.json": {"look": 1, "study": 0.3, "report": 0.15, "draw": 0.15, "weights": 0.3},
    "report.json": {"look": 1, "study": 0.3, "report": 0.15, "draw": 0.15},
    "events.jsonl": {"look": 1, "study": 0.3, "report": 0.2, "draw": 0.2},
    "examples.npz": {"draw": 0.5, "report": 0.5},
    "model.safetensors": {"weights": 1},
    "branch.safetensors": {"weights": 1},
    "resume.pt": {"resume": 1},
}
SLOW = 0.05  # the share of mutations after which the folder is checked and mended


_begun = [0.0]  # when the use at hand began


def _alarmed(*_):
    left = PATIENCE - (clock() - _begun[0])
    if left <= 0:
        raise Hang
    signal.setitimer(signal.ITIMER_REAL, left + 0.01)


def attempt(use, folder, wanted):
    "How one use ended: right, own, traceback (with its text) or hang."
    _begun[:] = [clock()]
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            use(folder, wanted)
        return "right", ""
    except AutoLoRaError as error:
        sentence = str(error)
        return ("own", "") if "\n" not in sentence else ("traceback", f"not one line: {sentence}")
    except Hang:
        return "hang", traceback.format_exc()
    except Exception:
        return "traceback", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _study(folder, mutated, other):
    "A study's folder of two cells, one of which is the run that is mutated."
    names = ["autolora-digits-robust_mini_gray-0", "autolora-digits-robust_mini_gray-1"]
    (folder / "runs").mkdir(parents=True)
    for name, run in zip(names, (mutated, other), strict=True):
        (folder / "runs" / name).symlink_to(run)
    about = {"source": "digits", "backbones": ["robust_mini_gray"], "images": [1, 1, 1]}
    protocol = {"arms": {"autolora": {"method": "autolora"}}, "tasks": {"digits": about}}
    protocol |= {"conditions": {"": {}}, "seeds": [0, 1], "settings": {}, "device": "cpu"}
    protocol |= {"versions": {}, "rules": {}, "threads": 1}
    (folder / "study.json").write_text(json.dumps(protocol))
    return folder


class Site:
    "All that mutations need, in `folder`: two runs, a study of theirs, data and checkpoints."

    def __init__(self, folder):
        self.folder = folder
        self.clean, self.other = material(folder)
        self.trap = folder / "code-was-run"
        self.work = folder / "work"
        found = Run(self.clean)
        self.wanted = {"model": found.model.state_dict(), "branch": found.branch.state_dict()}
        self.wanted["study"] = _study(folder / "study", self.work, self.other)
        ready = prepare("robust_mini_gray", small_task(), seed=0, **SETTINGS)
        schedule = ready.method.schedule(0.02, 2)
        self.wanted["learner"] = Learner(ready.method, ready.task, found, schedule, 2, 32)
        self.sources = sources(folder / "data")

    @property
    def names(self):
        "The files of a run, twice, and the formats of data and checkpoints."
        return [*FILES, *FILES, *self.sources]

    def trial(self, name, rng):
        "Mutate the file `name`, or one of that format, and use it: how each use ended, in words."
        shutil.rmtree(self.work, ignore_errors=True)
        if name in self.sources:
            file, use = self.sources[name]
            shutil.copytree(self.folder / "data" / name, self.work)
            mutate_data(self.work / file, rng, self.trap)
            uses = {"load": lambda path, _: use(path)}
        else:
            shutil.copytree(self.clean, self.work)
            mutate(self.work, name, self.other, rng, self.trap)
            chosen = [use for use, share in OFTEN[name].items() if rng.random() < share]
            uses = {use: USES[use] for use in chosen + ["check"] * (rng.random() < SLOW)}
        found = {use: attempt(call, self.work, self.wanted) for use, call in uses.items()}
        if self.trap.exists():
            self.trap.unlink()
            found["load"] = ("traceback", "code of a file was run")
        return found


def campaign(n, seed, folder, log=None, seconds=1e9):
    """The trials of `n` mutated files, dicts of the `file` and of the `ends` of its uses with what
    was said; those that the file `log` holds are not made again."""
    made = [json.loads(line) for line in log.read_text().splitlines()] if log else []
    site = Site(folder)
    deadline = time.monotonic() + seconds
    before = signal.signal(signal.SIGALRM, _alarmed)
    here = os.getcwd()
    os.chdir(folder)  # the list of broken images is written where one is
    try:
        for i in range(len(made), n):
            if time.monotonic() > deadline:
                break
            name = site.names[i % len(site.names)]
            made.append({"file": name, "ends": site.trial(name, random.Random(f"{seed} {i}"))})
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(made[-1]) + "\n")
    finally:
        signal.signal(signal.SIGALRM, before)
        os.chdir(here)
    return made[:n]


def counted(made):
    "By file, how often what happened; and what was said that is no answer, with how often."
    counts = defaultdict(Counter)
    faults = Counter()
    for trial in made:
        counts[trial["file"]]["files"] += 1
        for use, (end, told) in trial["ends"].items():
            counts[trial["file"]][end] += 1
            if told:
                faults[f"{trial['file']}, {use}: {told[-1200:]}"] += 1
    return counts, faults


def table(counts):
    "The counts as Markdown."
    columns = ["files", "right", "own", "traceback", "hang"]
    rows = [[name, *(found[c] for c in columns)] for name, found in sorted(counts.items())]
    total = sum(counts.values(), Counter())
    rows.append(["all", *(total[c] for c in columns)])
    header = ["file or format", "mutated", "right answers", "own errors", "tracebacks", "hangs"]
    return markdown(header, rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--minutes", type=float, default=1e6)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.log:
        args.log.touch()
        args.log = args.log.resolve()
    with tempfile.TemporaryDirectory() as folder:
        made = campaign(args.n, args.seed, Path(folder), args.log, 60 * args.minutes)
    counts, faults = counted(made)
    words = f"`benchmarks/fuzz.py`, seed {args.seed}: {len(made):,} of {args.n:,} mutated files. "
    words += f"A hang is {PATIENCE} seconds on the clock, less those that others had the cores for."
    write_section("Mutated files", f"{words}\n\n{table(counts)}")
    print(table(counts))
    for fault, count in faults.most_common(20):
        print(f"\n{count} times: {fault}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
