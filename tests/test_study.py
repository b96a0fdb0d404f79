"""What only whole processes can show: a study and its cells killed with kill -9, resumed to the
same bits; a search that never sees a test image."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from autolora.core.errors import AutoLoRaError
from autolora.core.paired import holm, pairs
from autolora.data.loading import load_task
from autolora.runs.finetuning import finetune
from autolora.runs.folder import Run
from autolora.runs.processes import launch
from autolora.runs.protocol import design
from autolora.runs.search import Search
from autolora.runs.study import Study, compare
from autolora.runs.tuning import Tuning, tune

TINY = {"limit": 220, "epochs": 2, "lr": 0.02, "angles": False, "progress": False}
FAST = {"method": "at", "lr": 1e12, "arm": "too fast"}  # its loss is infinite after a few steps


def children(pid):
    "The ids of the processes that `pid` has started."
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait(condition, seconds=120):
    "What `condition()` gives as soon as it is true."
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "An uninterrupted study, two runs at a time; one of its cells can't end well."
    return compare(
        ["at", "trades", FAST],
        "digits",
        seeds=1,
        out=tmp_path_factory.mktemp("study") / "whole",
        jobs=2,
        **TINY,
    )


def test_a_crashed_cell_is_recorded_and_the_rest_goes_on(whole):
    table = whole.table.set_index("arm")
    assert table.state.to_dict() == {"at": "finished", "trades": "finished", "too fast": "failed"}
    assert (
        "no longer a finite number" in table.message["too fast"]
        and "smaller lr" in table.message["too fast"]
    )
    page = (whole.path / "study.html").read_text(encoding="utf-8")
    assert (
        "no longer a finite number" in page and "src=" not in page.replace('src="data:', "")[:3000]
    )
    saved = pd.read_csv(whole.path / "table.csv").set_index("arm")
    assert (
        saved.ra_n["at"] == 360
        and saved.ra["at"] == saved.ra_correct["at"] / 360
        and saved.attack_steps["at"] == 2 * 11 * 10
        and saved.peak_memory["at"] > 1e8
    )


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds the worker processes in /proc"
)


@needs_proc
def test_killed_cell_and_killed_study_end_in_the_same_bits(whole, tmp_path):
    code = (
        "from autolora import compare; compare(['at', 'trades'], 'digits', seeds=1, "
        f"out={str(tmp_path / 'broken')!r}, jobs=1, **{TINY!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    runs = tmp_path / "broken" / "runs"
    first, second = (runs / f"{arm}-digits-robust_mini_gray-0" for arm in ("at", "trades"))
    wait(lambda: (first / "resume.pt").exists())
    (victim,) = wait(lambda: children(process.pid))
    os.kill(victim, signal.SIGKILL)
    wait(
        lambda: (second / "resume.pt").exists()
    )  # the killed cell was resumed by itself, and the next one is at work
    assert (first / "report.json").exists()
    (worker,) = children(process.pid)
    process.kill()
    process.wait()
    wait(lambda: not alive(worker), 20)
    assert not (second / "report.json").exists(), "the kill must come before the end"
    study = compare(["at", "trades"], "digits", seeds=1, out=tmp_path / "broken", jobs=1, **TINY)
    assert study.table.state.tolist() == ["finished", "finished"]
    for cell in study.cells:
        a, b = (load_file(s.run(cell).path / "model.safetensors") for s in (whole, study))
        assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
    same = ["sa_correct", "ra_correct", "best_epoch", "lr", "attack_steps"]
    assert whole.table.head(2)[same].equals(study.table[same]), (
        "neither the kills nor the number of jobs may matter"
    )


def test_another_protocol_is_refused_with_the_difference(whole):
    before = {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in whole.path.rglob("*")
        if path.is_file()
    }
    with pytest.raises(
        AutoLoRaError, match="settings epochs: 2 there, 4 asked for.*choose another out folder"
    ):
        compare(["at"], "digits", seeds=1, out=whole.path, **{**TINY, "epochs": 4})
    with pytest.raises(AutoLoRaError, match="arms too fast"):
        compare([{**FAST, "lr": 0.1}], "digits", seeds=1, out=whole.path, **TINY)
    assert before == {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in whole.path.rglob("*")
        if path.is_file()
    }


@needs_proc
def test_a_worker_killed_twice_is_recorded(tmp_path):
    def kill():
        for _ in range(2):
            for worker in wait(
                lambda: [
                    pid
                    for pid in children(os.getpid())
                    if b"autolora.runs.processes" in Path(f"/proc/{pid}/cmdline").read_bytes()
                ]
            ):
                os.kill(worker, signal.SIGKILL)
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    (job,) = launch(
        [{"backbone": "robust_mini_gray", "data": "digits", "out": str(tmp_path / "run")}],
        progress=False,
    )
    killer.join()
    assert job.state == "failed" and "SIGKILL" in job.message and "resuming goes on" in job.message


@needs_proc
def test_an_interrupt_ends_the_workers_and_leaves_what_is_needed_to_go_on(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "autolora.cli",
            "compare",
            "digits",
            "--methods",
            "at",
            "trades",
            "--seeds",
            "1",
            "--limit",
            "220",
            "--out",
            str(tmp_path / "study"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # `&` has it ignored
    )
    workers = wait(
        lambda: [
            pid
            for pid in children(process.pid)
            if b"autolora.runs.processes" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
    )
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=180)[1]
    assert (
        process.returncode == 130 and "the same command goes on" in said and "Traceback" not in said
    )
    assert not any(map(alive, workers))
    assert (
        Study.open(tmp_path / "study").table.state.isin(["waiting", "unfinished"]).all()
        and (tmp_path / "study" / "study.html").exists()
    )


class Untouchable:
    "A test split that may be counted, but not looked at."

    def __len__(self):
        return 360

    def __getattr__(self, name):
        raise AssertionError(f"the test split was asked for its {name}")


def test_a_trial_never_sees_a_test_image(tmp_path):
    task = replace(load_task("digits", limit=220), test=Untouchable())
    options = dict(method="at", epochs=1, lr=0.02, angles=False, progress=False)
    run = finetune("robust_mini_gray", task, out=tmp_path / "trial", test=False, **options)
    assert run.last("end") and run.report is None
    with pytest.raises(AssertionError, match="test split was asked"):
        finetune("robust_mini_gray", task, out=tmp_path / "other", **options)


def test_a_search_selects_on_validation_only(tmp_path):
    search = Search({"lr": (1e12,)}, ladder=((0.5, 2), (1.0, 10)), keep=2)
    given = dict(limit=220, epochs=2, progress=False)
    tuning = tune("robust_mini_gray", "digits", "at", 3, search, out=tmp_path / "search", **given)
    assert (
        not list((tuning.path / "trials").rglob("report.json"))
        and tuning.best.report["split"] == "test"
    )
    table = tuning.table
    assert (
        table.groupby("rung").size().tolist() == [2, 1]
        and table.state.tolist().count("failed") == 1
    )
    lost = table[table.state == "failed"].iloc[0]
    assert [e["number"] for e in Run(tuning.path).events if e["event"] == "failed"] == [
        lost.number
    ], "an untested trial is no failed one"
    assert lost.lr == 1e12 and "finite" in lost.message
    winner = table[table.rung == 0].sort_values(["ra", "sa"], ascending=False).iloc[0]
    assert table[table.rung == 1].number.tolist() == [winner.number]
    assert winner.ra == max(tuning.run(0, winner.number).history.ra), (
        "the score is the best validation accuracy"
    )
    assert len(pd.read_csv(tuning.path / "trials.csv")) == 3
    before = [p.stat().st_mtime_ns for p in sorted(tuning.path.rglob("events.jsonl"))]
    with pytest.raises(AutoLoRaError, match="budget 3.0 there, 5.0 asked for"):
        tune("robust_mini_gray", "digits", "at", 5, search, out=tuning.path, **given)
    assert before == [p.stat().st_mtime_ns for p in sorted(tuning.path.rglob("events.jsonl"))]
    assert Tuning.open(tuning.path).chosen == tuning.chosen


def test_pairs_agree_with_scipy():
    from scipy.stats import ttest_rel, wilcoxon

    rng, n = np.random.default_rng(1), 7
    table = pd.DataFrame(
        [
            {
                "arm": arm,
                "task": task,
                "backbone": "b",
                "condition": "",
                "seed": seed,
                "ra": rng.uniform(),
            }
            for task in "xy"
            for arm in "ABC"
            for seed in range(n)
        ]
    )
    found = pairs(table.sample(frac=1, random_state=0).sort_values("arm", kind="stable"))
    assert len(found) == 6 and set(found.family) == {6}
    for row in found.itertuples():
        a, b = (
            table[(table.task == row.task) & (table.arm == arm)].sort_values("seed").ra.to_numpy()
            for arm in (row.a, row.b)
        )
        oracle = ttest_rel(100 * a, 100 * b)
        assert np.allclose(
            [row.mean, row.p_t, row.p_w],
            [100 * (a - b).mean(), oracle.pvalue, wilcoxon(a - b).pvalue],
        )
        assert np.allclose([row.low, row.high], oracle.confidence_interval(0.95))


def test_holm_is_the_closed_test_of_bonferroni():
    """Holm's p of one hypothesis is the largest Bonferroni p over all intersections with it: slow,
    and right by definition."""
    p = np.random.default_rng(2).uniform(0, 0.3, 5)
    subsets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size)]
    oracle = [max(min(1, len(s) * p[list(s)].min()) for s in subsets if i in s) for i in range(5)]
    assert np.allclose(holm(p), oracle)


def test_a_study_is_read_from_its_folder(whole):
    assert Study.open(whole.path).table.equals(whole.table)
    assert json.loads((whole.path / "study.json").read_text())["threads"] >= 1


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"methods": []}, "at least one method"),
        ({"methods": 3}, "a name under 'method'.*: 3 is neither"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": 3}, "given by name or path"),
        ({"seeds": "two"}, "seeds must be a whole number of 1 or more, not 'two'"),
        ({"seeds": 0}, "seeds must be a whole number"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [0, "one"]}, "seed must be"),
        ({"seeds": True}, "seeds must be a whole number"),
        ({"backbones": 3}, "3 is no backbone: give a name"),
        ({"vary": ["lr"]}, "vary takes a dict"),
        ({"vary": {"lr": []}}, "at least one value of lr"),
        ({"jobs": "two"}, "jobs must be"),
        ({"jobs": 0}, "jobs must be"),
        ({"steps": "ten"}, "steps must be a whole number"),
    ],
)
def test_a_study_that_cannot_work_is_refused_before_anything_is_written(wrong, words, tmp_path):
    how = {"methods": "at", "tasks": "digits", "out": tmp_path / "study"} | wrong
    with pytest.raises(AutoLoRaError, match=words):
        compare(**how)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [3, print, [3], [object()], "Progress"])
def test_what_is_no_callback_is_refused(wrong, tmp_path):
    with pytest.raises(AutoLoRaError, match="list of Callback objects"):
        finetune("robust_mini_gray", "digits", callbacks=wrong, out=tmp_path / "run")
    with pytest.raises(AutoLoRaError, match="takes a Control"):
        finetune("robust_mini_gray", "digits", control=wrong, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_one_text_means_one_and_a_setting_given_as_text_is_what_it_says():
    protocol = design("at", "digits", "robust_mini_gray", "2", {"lr": "auto"}, {"epochs": "3"})
    assert protocol["seeds"] == [0, 1] and list(protocol["conditions"]) == ["lr=auto"]
    assert protocol["settings"] == {"epochs": 3}


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"jobs": 0}, "jobs must be"),
        ({"budget": "much"}, "budget must be a number above 0"),
        ({"search": 3}, "search takes a Search"),
        ({"method": "trade"}, "did you mean 'trades'"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_anything_is_written(wrong, words, tmp_path):
    with pytest.raises(AutoLoRaError, match=words):
        tune("robust_mini_gray", "digits", **{"out": tmp_path / "search"} | wrong)
    assert not list(tmp_path.iterdir())
