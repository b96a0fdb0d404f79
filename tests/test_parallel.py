"""One training on several processes: the same result as on one, and what becomes of it when a
process is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
CASE = Path(__file__).with_name("parallel_case.py")
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
]
FINETUNE = [
    "-m",
    "autolora",
    "finetune",
    "robust_mini_gray",
    "digits",
    "--limit",
    "400",
    "--lr",
    "0.05",
    "--seed",
    "3",
]


def run(command, **env):
    return subprocess.run(
        list(map(str, command)), env=ENV | env, capture_output=True, text=True, timeout=300
    )


def epochs_done(folder):
    log = Path(folder) / "events.jsonl"
    return (
        [
            event["epoch"]
            for line in log.read_text().splitlines()
            if (event := json.loads(line))["event"] == "epoch"
        ]
        if log.exists()
        else []
    )


in_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds the workers in /proc"
)


def workers(folder):
    "The process ids of the workers whose run folder is `folder`, in the order of their ranks."
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, env = (
                path.joinpath("cmdline").read_bytes(),
                path.joinpath("environ").read_bytes(),
            )
        except OSError:
            continue
        if str(folder).encode() in words and b"\0LOCAL_RANK=" in env:
            found[env.split(b"\0LOCAL_RANK=")[1].split(b"\0")[0]] = int(path.name)
    return [found[key] for key in sorted(found)]


def test_two_processes_train_as_one(tmp_path):
    for folder, command in (("one", [sys.executable]), ("two", LAUNCH)):
        done = run([*command, CASE, "autolora", tmp_path / folder])
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        json.loads((tmp_path / folder / "counts.json").read_text()) for folder in ("one", "two")
    )
    assert (one["world"], two["world"]) == (1, 2)
    assert one["rows"] == two["rows"] and one["rows"][0][2] == 101, (
        "counts, image by image, on a number of images that two don't divide"
    )
    assert all(np.allclose(one["history"][k], two["history"][k], rtol=1e-6) for k in one["history"])
    for name in ("model", "branch"):
        a, b = (
            load_file(tmp_path / "one" / f"{name}.safetensors"),
            load_file(tmp_path / "two" / f"{name}.safetensors"),
        )
        assert a.keys() == b.keys() and all(
            np.allclose(a[key], b[key], rtol=1e-6, atol=1e-8) for key in a
        )


@in_proc
def test_a_run_of_two_processes_goes_on_in_one(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen(
        [*LAUNCH, *FINETUNE, "--epochs", "5", "--out", str(folder)],
        env=ENV,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 120
        while not epochs_done(folder) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in (process.pid, *workers(folder)):
            os.kill(pid, signal.SIGKILL)
    before = len(epochs_done(folder))
    assert 1 <= before < 5
    done = run([sys.executable, *FINETUNE, "--epochs", "5", "--out", folder, "--resume"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert epochs_done(folder) == list(range(1, 6))
    assert [
        json.loads(line)["processes"]
        for line in (folder / "events.jsonl").read_text().splitlines()
        if '"start"' in line
    ] == [2]


@in_proc
def test_a_lost_worker_is_started_again(tmp_path):
    folder = tmp_path / "run"
    command = [*LAUNCH, "--max_restarts", "1", *FINETUNE, "--epochs", "4", "--out", str(folder)]
    with subprocess.Popen(
        command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (folder / "resume.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(workers(folder)[1], signal.SIGKILL)
        words, _ = process.communicate(timeout=200)
    assert process.returncode == 0, words[-3000:]
    assert sorted(set(epochs_done(folder))) == [1, 2, 3, 4] and len(epochs_done(folder)) <= 5, (
        "nothing but the epoch at work was done twice"
    )
    assert (folder / "report.json").exists()


def test_a_process_that_hangs_is_said(tmp_path):
    done = run([*LAUNCH, CASE, "trades", tmp_path / "run", "hang"], AUTOLORA_PATIENCE="5")
    assert done.returncode != 0 and "lost the others" in done.stderr and "--resume" in done.stderr


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", "The loss is no longer a finite number in epoch 2"),
        pytest.param("memory", "CUDA out of memory", marks=pytest.mark.long),
    ],
)
def test_a_fault_in_one_process_leaves_the_last_epoch(tmp_path, fault, words):
    done = run([*LAUNCH, CASE, "trades", tmp_path / "run", fault], AUTOLORA_PATIENCE="20")
    assert done.returncode != 0 and words in done.stderr
    assert epochs_done(tmp_path / "run") == [1]
    done = run([*LAUNCH, CASE, "trades", tmp_path / "run", "resume"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert epochs_done(tmp_path / "run") == [1, 2]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--batch-size", "3"], "2 processes can't share batches of 3 images"),
        pytest.param(["--lr", "fast"], "lr must be", marks=pytest.mark.long),
    ],
)
def test_bad_input_is_said_once(tmp_path, args, words):
    done = run([*LAUNCH, *FINETUNE, *args, "--out", tmp_path / "run"])
    assert done.returncode != 0 and done.stderr.count("autolora: ") == 1 and words in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_restarts_need_a_folder(tmp_path):
    done = run([*LAUNCH, "--max_restarts", "1", *FINETUNE])
    assert done.returncode != 0 and "give out=" in done.stderr
