"""What only whole processes can show: a run killed with kill -9 and resumed, and bad input said in
one sentence."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from autolora.cli import main
from autolora.runs.processes import perform, submit

ENV = os.environ | {
    "OMP_NUM_THREADS": "1"
}  # one thread: sums in one order, so that runs can be compared bit for bit
SHIPPED = Path(__file__).parents[1] / "autolora" / "weights"
FINETUNE = [
    "finetune",
    "robust_mini_gray",
    "digits",
    "--limit",
    "400",
    "--epochs",
    "3",
    "--seed",
    "3",
]


def autolora(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "autolora.cli", *map(str, args)],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=600,
        **options,
    )


def epochs_done(folder):
    log = folder / "events.jsonl"
    return (
        sum('"event": "epoch"' in line for line in log.read_text().splitlines())
        if log.exists()
        else 0
    )


@pytest.mark.long  # one of test_faults.py's crashes, by the command
def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = autolora(*FINETUNE, "--out", whole)
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        [sys.executable, "-m", "autolora.cli", *FINETUNE, "--out", str(broken)],
        env=ENV,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (broken / "resume.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.2)  # well into the second epoch
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 1 <= epochs_done(broken) < 3, (
        "the kill must come between the first checkpoint and the end"
    )
    assert (broken / "model.safetensors").exists(), "the best model is written at each new best"
    refused = autolora(*FINETUNE, "--out", broken)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    resumed = autolora(*FINETUNE, "--out", broken, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("model", "branch"):
        a, b = load_file(whole / f"{name}.safetensors"), load_file(broken / f"{name}.safetensors")
        assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)

    def accuracies(folder):
        return [
            (r["attack"], r["correct"], r["n"])
            for r in json.loads((folder / "report.json").read_text())["evaluations"]
        ]

    assert accuracies(whole) == accuracies(broken)


def full_disk(tmp_path):
    "A folder on a file system of 64 kB, or None where it can't be mounted."
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True
    )
    return folder if mounted.returncode == 0 else None


def test_full_disk_is_one_sentence(tmp_path):
    folder = full_disk(tmp_path)
    if folder is None:
        pytest.skip("a small file system can't be mounted here")
    try:
        done = autolora(*FINETUNE, "--out", folder / "run")
        assert (
            done.returncode == 2
            and "can't be written" in done.stderr
            and "Traceback" not in done.stderr
        )
        assert not list((folder / "run").glob(".*")), "no half-written file is left"
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "args, words",
    [
        (["finetun"], "did you mean 'finetune'"),
        (["finetune", "robust_mini_grey", "digits"], "did you mean 'robust_mini_gray'"),
        (["finetune", "robust_mini_gray", "digit"], "did you mean 'digits'"),
        (
            ["finetune", "robust_mini_gray", "digits", "--method", "autolroa"],
            "did you mean 'autolora'",
        ),
        (["finetune", "robust_mini_gray", "digits", "--threat", "linf:8"], "8/255"),
        (["finetune", "robust_mini_gray", "digits", "--lr", "fast"], "lr must be"),
        (["finetune", "robust_mini_gray", "digits", "--batch-size", "5000"], "fewer than a batch"),
        (["finetune", "robust_mini_gray", "digits", "--epochs", "0"], "epochs"),
        (["finetune", "robust_mini_gray", "digits", "--limit", "10"], "too few"),
        (["finetune", "robust_mini_gray", "/no/such/pack.npz"], "/no/such/pack.npz"),
        (["finetune", "robust_mini_gray", "digits", "--out", "/proc/run"], "can't be written"),
        (["evaluate", "/no/such/run"], "no run in"),
        (
            ["finetune", "robust_mini_gray", "digits", "--weights", "/no/such/file.pt"],
            "no checkpoint",
        ),
        (
            ["finetune", "robust_mini_gray", "digits", "--weights", __file__],
            "is a text: give the file of the weights",
        ),
        (
            [
                "finetune",
                "robust_mini_gray",
                "digits",
                "--weights",
                str(SHIPPED / "robust_mini_rgb.safetensors"),
            ],
            "tensors of the feature extractor",
        ),
    ],
)
def test_bad_input_is_one_sentence_before_training(tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    status, said = main(args), capsys.readouterr().err
    assert status == 2, said
    assert said.startswith("autolora: ") and words in said and "Traceback" not in said
    assert not list(tmp_path.rglob("events.jsonl")), "nothing may have been started"


def test_a_process_says_it_likewise(tmp_path):
    done = autolora("finetune", "robust_mini_gray", "digits", "--limit", "10", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("autolora: "), done.stderr
    assert "too few" in done.stderr and "Traceback" not in done.stderr


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    done = autolora(*FINETUNE, "--epochs", "1", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    kept = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    other = autolora(
        "finetune",
        "robust_mini_gray",
        "digits",
        "--limit",
        "400",
        "--epochs",
        "1",
        "--seed",
        "4",
        "--out",
        tmp_path / "run",
    )
    assert (
        other.returncode == 2
        and "different run" in other.stderr
        and "seed 3 there, 4 asked for" in other.stderr
    )
    assert kept == {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    measured = autolora("evaluate", tmp_path / "run", "--attacks", "none", "pgd-3")
    assert measured.returncode == 0 and "PGD-3" in measured.stdout


def test_a_run_that_names_no_data_says_how_to_measure_it(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"backbone": "robust_mini_gray", "num_classes": 10, "threat": "linf:0.1"})
    )
    done = autolora("evaluate", tmp_path)
    assert done.returncode == 2 and "--data" in done.stderr and "Traceback" not in done.stderr


def test_photographs_of_different_shapes_need_a_size(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(260):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i % 3, 24, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        )
    words = [
        "finetune",
        "robust_mini_rgb",
        tmp_path / "photos",
        "--epochs",
        "1",
        "--lr",
        "0.02",
        "--out",
        tmp_path / "run",
    ]
    refused = autolora(*words)
    assert (
        refused.returncode == 2
        and "--size 224" in refused.stderr
        and "Traceback" not in refused.stderr
        and not (tmp_path / "run").exists()
    )
    done = autolora(*words, "--size", "16")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["shape"] == [3, 16, 16]
    assert "--size 16" in (tmp_path / "run" / "report.html").read_text(), (
        "the command that makes the run again"
    )
    measured = autolora("evaluate", tmp_path / "run", "--attacks", "none", "pgd-1")
    assert measured.returncode == 0 and "PGD-1" in measured.stdout, measured.stderr


def processes(words):
    "The ids of the processes in whose command line all of `words` stand."
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found = line.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(word in found for word in words):
            yield int(line.parent.name)


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs autolora[cluster]")
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the process in /proc")
def test_a_schedulers_warning_puts_the_run_into_the_queue_again(tmp_path, one_thread):
    "submitit's local queue, a real process, the signal by which it warns."
    short = dict(limit=220, steps=1, lr=0.02, angles=False, test=False, method="at")
    calls = [
        {"backbone": "robust_mini_gray", "data": "digits", "epochs": epochs, "out": tmp_path / name}
        | short
        for name, epochs in (("whole", 6), ("warned", 6))
    ]
    perform(calls[0])
    jobs = []
    queue = {"cluster": "local", "folder": tmp_path / "queue", "timeout_min": 5}
    waiting = threading.Thread(
        target=lambda: jobs.extend(submit(calls[1:], progress=False, **queue))
    )
    waiting.start()
    deadline = time.monotonic() + 120
    while not epochs_done(tmp_path / "warned") and time.monotonic() < deadline:
        time.sleep(0.01)
    (worker,) = processes(["submitit.core._submit", str(tmp_path / "queue")])
    os.kill(worker, signal.SIGUSR2)
    waiting.join(240)
    assert [job.state for job in jobs] == ["finished"], [job.message for job in jobs]
    said = "".join(path.read_text() for path in (tmp_path / "queue").glob("*_log.*"))
    assert "Requeued job" in said
    log = (tmp_path / "warned" / "events.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in log if '"event": "epoch"' in line]
    assert epochs == list(range(1, 7))
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "warned"))
    assert all(np.array_equal(a[key], b[key]) for key in a)


STRIDED = """
import sys, numpy as np, torch
from torch import nn
from autolora import finetune

torch.manual_seed(0)
rng = np.random.default_rng(0)
labels = np.arange(200) % 4
images = rng.random((200, 32, 32, {channels})) / 2 + labels[:, None, None, None] / 8
stem = nn.Conv2d({channels}, 16, 1, 2)
net = nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 4))
how = dict(epochs=1, method="trades", lr=0.1, seed=1, augment="none", progress=False)
data = (images.astype(np.float32), labels)
run = finetune(net, data, out=sys.argv[1], **how)
with torch.backends.mkldnn.flags(enabled=False):
    again = finetune(net, data, out=sys.argv[2], **how)
for ours, exact in zip(run.model.parameters(), again.model.parameters()):
    torch.testing.assert_close(ours, exact, rtol=1e-2, atol=1e-3)
print("equal")
"""


@pytest.mark.parametrize("channels", [1, 3])
def test_a_strided_1x1_stem_trains_as_without_onednn(channels, tmp_path):
    code = STRIDED.format(channels=channels)
    command = [sys.executable, "-c", code, tmp_path / "run", tmp_path / "again"]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["equal"], done.stderr
