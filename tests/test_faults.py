"""What files, disks, signals and other people may do to a run: short forms of benchmarks/fuzz.py
and benchmarks/crashes.py, and each promise once."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from autolora import AutoLoRaError, Run, finetune
from autolora.cli import main
from autolora.core.disk import alone, leftovers
from autolora.core.reading import read_arrays
from autolora.data.loading import load_task
from autolora.lab.desk import Desk
from autolora.lab.painter import Easel
from autolora.models.backbones import load_backbone
from autolora.runs.checking import check
from autolora.runs.finetuning import default_out
from autolora.runs.folder import create_run
from autolora.runs.protocol import cells, design
from autolora.runs.study import Study, create_study
from autolora.runs.verifying import verify
from autolora.show.card import write_card
from autolora.show.report import write_report

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import crashes  # noqa: E402
import fuzz  # noqa: E402

ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SHORT = dict(epochs=1, limit=220, lr=0.02, steps=1, progress=False, angles=False)
MARKER = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A finished run, to be copied."
    folder = tmp_path_factory.mktemp("made") / "run"
    finetune("robust_mini_gray", "digits", out=folder, **SHORT)
    return folder


@pytest.fixture()
def folder(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


# --- reading -------------------------------------------------------------------------------------


def test_mutated_files_end_in_our_own_error_or_a_right_answer(tmp_path):
    counts, faults = fuzz.counted(fuzz.campaign(85, 7, tmp_path))
    assert not faults, "\n".join(faults)
    assert all(found["right"] + found["own"] for found in counts.values()), counts


def test_weights_of_another_byte_order_and_empty_statistics(tmp_path):
    net = load_backbone("robust_mini_gray", 10)
    plain = {f"net.{k}": v.numpy() for k, v in net.net.state_dict().items()}
    turned = {k: v.astype(v.dtype.newbyteorder(">")) for k, v in plain.items()}
    np.savez(tmp_path / "w.npz", **turned | {"mean": np.zeros(0, "f4"), "std": np.ones(0, "f4")})
    found = load_backbone("robust_mini_gray", 10, weights=tmp_path / "w.npz").net.state_dict()
    assert all(
        torch.equal(found[k.removeprefix("net.")].cpu(), torch.tensor(v))
        for k, v in plain.items()
        if "head" not in k
    )


def test_class_names_that_are_a_number(tmp_path):
    x, y = np.zeros((4, 1, 8, 8), "f4"), np.arange(4) % 2
    with pytest.raises(AutoLoRaError, match="class"):
        load_task({"train_x": x, "train_y": y, "classes": np.array(2.0)})


def test_notes_that_are_no_list_and_examples_without_answers(folder):
    config = json.loads((folder / "config.json").read_text())
    arrays = dict(np.load(folder / "examples.npz"))
    kept = {k: v for k, v in arrays.items() if not k.endswith("_adv")}
    np.savez(folder / "examples.npz", **kept)
    assert "lacks images, classes or answers" in write_report(Run.open(folder)).read_text()
    (folder / "config.json").write_text(json.dumps(config | {"notes": 5}))
    with pytest.raises(AutoLoRaError, match="notes"):
        write_report(Run.open(folder))


def test_a_bomb_of_zeros_is_refused_before_it_is_unpacked(folder):
    with io.BytesIO() as pack:
        np.savez_compressed(pack, nat=np.zeros(2**29, np.uint8))
        (folder / "examples.npz").write_bytes(pack.getvalue())
    with pytest.raises(AutoLoRaError, match="unpacked it would take more"):
        read_arrays(folder / "examples.npz")
    assert "unpacked it would take more" in write_report(Run.open(folder)).read_text()


def test_weights_of_another_run_are_noticed(folder, tmp_path):
    other = finetune(
        "robust_mini_gray", "digits", out=tmp_path / "other", seed=1, **SHORT | {"test": False}
    )
    shutil.copy(other.path / "model.safetensors", folder)
    with pytest.raises(AutoLoRaError, match="the weights are of another run"):
        _ = Run.open(folder).model
    for name in ("report.json", "report.html", "card.md"):
        (folder / name).unlink()
    shutil.copy(other.path / "resume.pt", folder)
    with pytest.raises(AutoLoRaError, match="the checkpoint of another run"):
        finetune("robust_mini_gray", "digits", out=folder, resume=True, **SHORT)


def test_a_damaged_run_takes_no_study_and_no_lab_along(made, tmp_path):
    protocol = design(["autolora"], "digits", None, 2, None, {"epochs": 1})
    study = create_study(tmp_path / "runs" / "study", protocol)
    first, second = (study.run(cell).path for cell in study.cells)
    shutil.copytree(made, first)
    shutil.copytree(made, second)
    (second / "events.jsonl").unlink()
    (second / "events.jsonl").mkdir()
    (second / "report.json").write_text("[]")
    table = Study.open(study.path).table
    assert list(table.state) == ["finished", "damaged"]
    assert "autolora check" in table.message[1] and table.ra.notna().tolist() == [True, False]
    assert study.write().is_file()
    shutil.copytree(made, tmp_path / "runs" / "whole")
    shutil.copytree(made, tmp_path / "runs" / "broken")
    (tmp_path / "runs" / "broken" / "config.json").write_text('{"epochs": "many"}')
    desk = Desk(tmp_path / "runs")
    desk.open(tmp_path / "runs" / "whole")
    assert any(label.startswith("damaged") for label, _ in desk.runs.options)
    folders = [path for _, path in desk.runs.options]
    order = {"folders": folders, "opened": [], "image": 0, "scale": 0.0, "upto": None, "work": None}
    found = Easel().paint(order | {"anew": True})
    assert len(found["panels"]) > 5 and "epochs" in found["tables"]


def test_a_later_format_is_refused_with_the_sentence(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(AutoLoRaError, match="a later version of autolora: update"):
        _ = Run.open(folder).config


# --- nothing gets in -----------------------------------------------------------------------------


def texts(value, path=()):
    "The paths of all leaves of a JSON value."
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        if isinstance(part, (dict, list)):
            yield from texts(part, (*path, key))
        else:
            yield (*path, key)


def marked(value, path):
    made = json.loads(json.dumps(value))
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = MARKER
    return made


def pages_of(folder):
    "All that a page, a card or the lab would show of a run; what can't be read is left out."
    run = Run.open(folder)
    order = {"folders": [str(folder)], "opened": ["accuracy", "losses", "scales", "lr"]}
    shown = Easel().paint(
        order | {"image": 0, "scale": 0.0, "upto": None, "work": None, "anew": True}
    )
    yield from [shown["tables"], run._repr_markdown_()]
    yield from [part for panel in shown["panels"] for part in panel[1:]]
    yield from [write_report(run).read_text(), fuzz.outside_code(write_card(run).read_text())]


@pytest.mark.parametrize("name", ["config.json", "report.json", "events.jsonl"])
def test_no_leaf_of_a_file_becomes_markup(folder, name):
    "Every leaf carries the marker once; those that may hold a text reach the pages, escaped."
    path = folder / name
    lines = path.read_text().splitlines() if name == "events.jsonl" else [path.read_text()]
    taken = 0
    for number, line in enumerate(lines):
        found = json.loads(line)
        found.pop("sha256", None)  # nobody has to keep the digest that tells a change by hand
        fits = []
        for leaf in texts(found):
            changed = json.dumps(marked(found, leaf))
            path.write_text("\n".join([*lines[:number], changed, *lines[number + 1 :]]) + "\n")
            run = Run(folder)
            try:
                _ = run.config, run.report
            except AutoLoRaError:
                continue
            if run.damaged_lines or leaf[0] in ("event", "format"):
                continue
            fits.append(leaf)
        for leaf in fits:  # all of one line together
            found = marked(found, leaf)
        path.write_text(
            "\n".join([*lines[:number], json.dumps(found), *lines[number + 1 :]]) + "\n"
        )
        for page in pages_of(folder) if fits else ():
            assert MARKER not in page, (line[:80], page[max(0, page.find(MARKER) - 200) :][:400])
        taken += len(fits)
        path.write_text("\n".join(lines) + "\n")
    assert taken > 3


def test_an_event_with_markup_in_a_number_is_no_event(folder):
    line = {"event": "scales", "scale": [0.0], "sa": [None], "ra": [None], "n": MARKER}
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    run = Run.open(folder)
    assert len(run.damaged_lines) == 1 and run.last("scales").get("n") != MARKER
    assert "torn or garbled" in write_report(run).read_text()


def test_the_canvas_takes_no_markup_from_data():
    source = (ROOT / "autolora" / "lab" / "canvas.py").read_text()
    assert not [w for w in ("innerHTML", "outerHTML", "insertAdjacentHTML") if w in source]


def test_cards_and_terminals_get_neither_fences_nor_escape_codes(folder):
    config = json.loads((folder / "config.json").read_text())
    odd = "a\x1b[2J\n```\n# not a heading\u202e"
    config |= {"task": odd, "data": odd, "origin": odd, "licence": odd, "classes": [odd] * 10}
    config["versions"]["autolora"] = odd
    del config["sha256"]  # as in older folders
    config["asked"] |= {"root": odd, "a=1; import os": 3}
    (folder / "config.json").write_text(json.dumps(config))
    run = Run.open(folder)
    card = write_card(run).read_text()
    assert "\x1b" not in card and "\u202e" not in card and "\n# not a heading" not in card
    assert "\n```\n# " not in card and "import os" not in card
    shell = next(line for line in card.splitlines() if line.startswith("autolora finetune"))
    assert r"\n" in shell
    said = subprocess.run(
        [sys.executable, "-m", "autolora", "check", str(folder)],
        env=ENV,
        capture_output=True,
        text=True,
    )
    assert "\x1b" not in said.stdout + said.stderr


def test_no_name_leads_out_of_the_folder(tmp_path):
    for name in ("../../x", "/etc/passwd", "..", "a\x00b", "é" * 400):
        path = default_out("autolora", name, name, 0, tmp_path / "runs")
        assert path.parent == tmp_path / "runs" and len(path.name.encode()) <= 200
        path.mkdir(parents=True, exist_ok=True)


# --- nothing is lost -----------------------------------------------------------------------------


def test_crashes_and_signals_change_nothing(tmp_path):
    "One of each kind; the long table is benchmarks/crashes.py's."
    trials = crashes.Crashes(tmp_path, seed=3, lr=0.02, angles=False)
    replaces = [i for i, call in enumerate(trials.calls) if call.startswith("replace")]
    for i in (1, replaces[-2]):
        trials.at(crashes.kill, i)
    trials.at(crashes.full, replaces[2])
    trials.at(crashes.read_only, replaces[4])
    trials.at(crashes.torn, replaces[3])
    trials.killed(0)
    trials.signalled(signal.SIGTERM, 1, 0)
    trials.signalled(signal.SIGHUP, 2, 0)
    assert not trials.faults, "\n".join(trials.faults)
    files = {call.partition(" ")[2] for call in trials.calls if crashes.is_written(call)}
    left = {path.name for path in trials.whole.iterdir()}
    assert files == left | {"resume.pt"} and "resume.pt" not in left, "a file is written otherwise"


def test_what_is_no_path_is_said_before_any_work():
    for call in (Run.open, Desk, lambda out: finetune("robust_mini_gray", "digits", out=out)):
        with pytest.raises(AutoLoRaError, match="3 is no path"):
            call(3)


def test_a_start_that_was_broken_off_is_no_obstacle(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / ".config.json.abcd1234.tmp").write_text("{")
    (path / ".lock").write_text('{"pid": 1}')
    run = finetune("robust_mini_gray", "digits", out=path, **SHORT | {"test": False})
    assert not leftovers(path) and len(run.history) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(AutoLoRaError, match="is not empty and holds no run"):
        create_run(tmp_path / "mine", {"seed": 0})


@pytest.mark.parametrize("gone", [["card.md"], ["report.html", "card.md"]])
def test_missing_pages_are_written_when_a_run_is_gone_on_with(folder, gone):
    for name in gone:
        (folder / name).unlink()
    assert not Run.open(folder).finished
    log = (folder / "events.jsonl").read_bytes()
    run = finetune("robust_mini_gray", "digits", out=folder, resume=True, **SHORT)
    assert run.finished and (folder / "events.jsonl").read_bytes() == log


def test_what_cant_be_written_is_found_before_the_first_epoch(tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run"
    create_run(path, {"seed": 0})
    shutil.rmtree(path)
    start = time.monotonic()
    ready = finetune("robust_mini_gray", "digits", out=path, **SHORT | {"test": False})
    (ready.path / "resume.pt").unlink()
    (ready.path / "events.jsonl").unlink()
    (ready.path / "report.html").mkdir()
    with pytest.raises(AutoLoRaError, match="report.html can't be written .a folder is in its"):
        finetune("robust_mini_gray", "digits", out=path, resume=True, **SHORT)
    assert not Run.open(path).last("epoch") and time.monotonic() - start < 120


def test_two_processes_on_one_folder(folder):
    code = (
        "import sys, time; from autolora.core.disk import alone\n"
        "with alone(sys.argv[1]): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], env=ENV, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "in\n"
        log = (folder / "events.jsonl").read_bytes()
        with pytest.raises(AutoLoRaError, match=f"process {other.pid} on"):
            finetune("robust_mini_gray", "digits", out=folder, resume=True, **SHORT)
        with pytest.raises(AutoLoRaError, match="at work"):
            check(folder)
        assert (folder / "events.jsonl").read_bytes() == log
    finally:
        other.kill()
        other.wait()
    with alone(folder):  # its lock is stale now
        assert (folder / ".lock").is_file()
    assert not (folder / ".lock").exists()


def test_data_that_changed_are_refused(tmp_path, capsys):
    task = load_task("digits", limit=400)
    images, labels = task.train.images(), task.train.y.clone()
    path = tmp_path / "run"
    finetune("robust_mini_gray", (images, labels), out=path, **SHORT | {"test": False})
    (path / "resume.pt").unlink()
    for changed in ((1 - images, labels), (images, labels.roll(1))):
        with pytest.raises(AutoLoRaError, match="training images or labels have changed since"):
            finetune("robust_mini_gray", changed, out=path, resume=True, **SHORT)
    pack = tmp_path / "pack.npz"
    pixels = (images * 255).byte().numpy()
    np.savez(pack, train_x=pixels, train_y=labels.numpy())
    run = finetune("robust_mini_gray", pack, out=tmp_path / "packed", **SHORT)
    command = ["evaluate", str(run.path), "--n", "20"]
    assert main(command) == 0, capsys.readouterr().err
    np.savez(pack, train_x=pixels, train_y=labels.roll(1).numpy())
    assert main(command) == 2 and "changed since" in capsys.readouterr().err


def test_versions_that_changed_are_told_and_recorded(folder):
    for name in ("report.json", "report.html", "card.md"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["versions"] |= {"torch": "1.0", "threads": "64"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="torch 1.0 then"):
        run = finetune("robust_mini_gray", "digits", out=folder, resume=True, **SHORT)
    assert run.last("changed")["what"]["torch"] == torch.__version__
    assert "Changed when the run was gone on with" in (folder / "card.md").read_text()


def test_check_says_what_is_whole_and_mends(tmp_path):
    folder = tmp_path / "run"  # not evaluated, so that it has its checkpoint still
    finetune("robust_mini_gray", "digits", out=folder, **SHORT | {"test": False})
    log = (folder / "events.jsonl").read_text()
    (folder / "events.jsonl").write_text(log.replace("\n", "\n3\n", 1) + '{"event": "ep')
    (folder / "branch.safetensors").write_bytes(b"torn")
    command = [sys.executable, "-m", "autolora", "check", str(folder)]
    said = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert said.returncode == 0 and "written anew without the damaged lines" in said.stdout
    assert (folder / "events.jsonl").read_text() == log
    assert Run.open(folder).branch is not None
    assert {*check(folder).values()} == {"whole"}


def test_a_torn_config_and_a_torn_page_are_mended(tmp_path):
    folder = tmp_path / "run"
    run = finetune("robust_mini_gray", "digits", out=folder, autoattack=0, **SHORT)
    pages = {name: (folder / name).read_bytes() for name in run.pages}
    for name, whole in pages.items():
        (folder / name).write_bytes(whole[: len(whole) // 2])
        finetune("robust_mini_gray", "digits", out=folder, autoattack=0, resume=True, **SHORT)
        assert (folder / name).read_bytes()[-200:] == whole[-200:], name
        (folder / name).write_bytes(whole[: len(whole) // 2])
        assert "its end is missing" in check(folder)[name]
        assert (folder / name).read_bytes()[-200:] == whole[-200:], name

    begun = tmp_path / "begun"  # of which the disk kept half of the first file
    begun.mkdir()
    (begun / "config.json").write_bytes((folder / "config.json").read_bytes()[:500])
    again = lambda: finetune(
        "robust_mini_gray", "digits", out=begun, resume=True, **SHORT | {"test": False}
    )
    with pytest.raises(AutoLoRaError, match="autolora check"):
        again()
    assert "nothing was trained yet" in check(begun)["config.json"]
    assert len(again().history) == 1
    (begun / "config.json").write_bytes((folder / "config.json").read_bytes()[:500])
    assert check(begun)["config.json"].startswith("not mended")  # a log is there: nothing is moved


def test_a_config_that_was_edited_is_named_and_nothing_else_is_moved(folder):
    config = folder / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"name": "mine"}))
    with pytest.raises(AutoLoRaError, match="config.json can't be used .it was changed by hand"):
        _ = Run.open(folder).model
    names = sorted(path.name for path in folder.iterdir())
    assert check(folder) == {
        "config.json": "not mended: it was changed by hand: bring the old one back"
    }
    unsealed = json.loads(before) | {"name": "mine"}
    del unsealed["sha256"]  # as older versions wrote it: all that is known is that two disagree
    config.write_text(json.dumps(unsealed))
    told = check(folder)
    for name in ("model.safetensors", "branch.safetensors"):
        assert told[name].startswith("not mended, but whole and left in its place")
    assert sorted(path.name for path in folder.iterdir()) == names
    config.write_text(before)
    assert Run.open(folder).model is not None and {*check(folder).values()} == {"whole"}


@pytest.mark.parametrize("name", ["model.safetensors", "branch.safetensors"])
def test_weights_that_are_gone_are_named(folder, name):
    (folder / name).unlink()
    said = subprocess.run(
        [sys.executable, "-m", "autolora", "check", str(folder)],
        env=ENV, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 1 and f"{name:20} not mended: it is gone" in said.stdout
    if name == "model.safetensors":
        with pytest.raises(AutoLoRaError, match="is finished, but its model.safetensors is gone"):
            _ = Run.open(folder).model
        assert not verify(folder, progress=False).holds


def without(folder, number):
    "Take the event of that epoch out of the log of the run in `folder`."
    log = folder / "events.jsonl"
    kept = [line for line in log.read_text().splitlines() if f'"epoch": {number},' not in line]
    log.write_text("".join(f"{line}\n" for line in kept))


LOSSES = {
    "events.jsonl": lambda folder: (folder / "events.jsonl").unlink(),
    "events.jsonl lacks epoch": lambda folder: without(folder, 1),
    "report.json": lambda folder: (folder / "report.json").unlink(),
    "examples.npz": lambda folder: (folder / "examples.npz").unlink(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_finished_run_lacks_is_named(folder, name):
    LOSSES[name](folder)
    told = check(folder)
    assert told[name.split()[0]].startswith("not mended: it ")
    assert {words for file, words in told.items() if file != name.split()[0]} == {"whole"}


def test_a_run_whose_data_were_moved_goes_on(tmp_path):
    task = load_task("digits", limit=300)
    pixels = (task.train.images() * 255).byte().numpy()
    np.savez(tmp_path / "a.npz", train_x=pixels, train_y=task.train.y.numpy())
    how = SHORT | {"out": tmp_path / "run", "limit": None, "test": False}
    finetune("robust_mini_gray", tmp_path / "a.npz", **how)
    (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    with pytest.warns(UserWarning, match="b.npz now.*: the images are the same"):
        finetune("robust_mini_gray", tmp_path / "b.npz", resume=True, **how | {"test": True})
    assert len(Run.open(tmp_path / "run").task.train) > 0
    np.savez(tmp_path / "b.npz", train_x=255 - pixels, train_y=task.train.y.numpy())
    with pytest.raises(AutoLoRaError, match="have changed since"):
        finetune("robust_mini_gray", tmp_path / "b.npz", resume=True, **how)


# --- studies -------------------------------------------------------------------------------------


def test_two_tasks_with_one_file_stem_are_two_tasks(tmp_path):
    task = load_task("digits", limit=400)
    pixels = (task.train.images() * 255).byte().numpy()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "x.npz", train_x=pixels, train_y=task.train.y.numpy())
    sources = [tmp_path / "a" / "x.npz", tmp_path / "b" / "x.npz"]
    protocol = design("at", sources, None, 1, None, {"epochs": 1})
    assert list(protocol["tasks"]) == ["x", "b/x"]
    names = [cell["name"] for cell in cells(protocol)]
    assert len({*names}) == 2 and not [name for name in names if "/" in name]
    protocol["arms"] = {"at · a": {"method": "at"}, "at · b": {"method": "at"}, "at  b": {}}
    assert len({cell["name"] for cell in cells(protocol)}) == 6


def test_compare_says_by_its_exit_status_that_a_run_failed(tmp_path):
    command = [sys.executable, "-m", "autolora", "compare", "digits", "--methods", "at"]
    command += ["--seeds", "1", "--epochs", "1", "--limit", "220", "--out", str(tmp_path / "s")]
    failed = subprocess.run(
        [*command, "--batch-size", "4000"], env=ENV, capture_output=True, text=True
    )
    assert failed.returncode == 1 and "Not finished" in failed.stdout, failed.stderr
