"""Folders that 0.1.0 wrote open: config, events and report as they were, weights under its names.

The weights themselves would be megabytes; `tensors.json` holds their names, shapes and types, and
the tests fill them in."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import autolora
from autolora import Run
from autolora.runs.finetuning import write_card, write_report
from autolora.show.curves import PANELS
from autolora.show.report import reproduce

OLD = Path(__file__).parent / "old_runs"
TYPES = {"F32": torch.float32, "I64": torch.int64}


@pytest.fixture(params=["autolora", "trades"])
def run(request, tmp_path):
    folder = tmp_path / request.param
    shutil.copytree(OLD / request.param, folder)
    torch.manual_seed(0)
    for file, tensors in json.loads((folder / "tensors.json").read_text()).items():
        made = {
            name: 0.1 * torch.rand(shape).to(TYPES[kind]) for name, (shape, kind) in tensors.items()
        }
        save_file(made, folder / file)
    return Run.open(folder)


def test_what_was_set_stands_beside_the_rest(run):
    own = {"autolora": {"kl": "detached", "rank": 4}, "trades": {"beta": 3.0, "steps": 5}}
    assert own[run.config["method"]].items() <= run.config.items()
    assert "options" not in run.config


def test_history_report_and_pictures(run):
    assert len(run.history) == 2 and run.finished
    assert run.report["evaluations"][0]["n"] == 360
    for plot in PANELS.values():
        assert plot({run.config["method"]: run.history}).data


def test_model_and_branch_are_rebuilt(run):
    x = torch.rand(2, 1, 16, 16)
    assert run.model(x).shape == (2, 10)
    if run.config["method"] == "autolora":
        assert torch.allclose(run.branch(x, scale=0.0), run.model(x), atol=1e-4)
        assert run.branch.rank == 4
    else:
        assert run.branch is None


def test_the_call_is_told_again(run):
    page = write_report(run).read_text().replace("&#x27;", "'")
    write_card(run)
    for text in (page, (run.path / "card.md").read_text()):
        if run.config["method"] == "trades":
            assert "attack='growing'" in text and "--attack growing" in text
            assert "beta=3.0" in text and "--beta 3.0" in text
        else:
            assert "rank=4" in text and "kl='detached'" in text
            assert "route='branch'" in text and "lam1='auto'" in text  # the default of then
    assert "options" not in (run.path / "card.md").read_text()


def test_a_run_of_before_a_default_was_changed_is_told_with_its_own(tmp_path):
    recorded = Path(autolora.__file__).parent / "recorded" / "autolora"
    shutil.copytree(recorded, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    then = json.loads(file.read_text()) | {"adv_weight": "paper", "asked": {"seed": 3}}
    file.write_text(json.dumps(then))
    python = reproduce(Run.open(tmp_path / "run"))[0]
    assert "adv_weight='paper'" in python and "seed=3" in python and "branch_rate" not in python


def test_the_command_measures_it(run):
    command = [sys.executable, "-m", "autolora", "evaluate", str(run.path), "--n", "20"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "/ 20" in done.stdout, done.stderr
