"""A package of somebody else's, two files, shows up in the command, in studies and in the lab."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from autolora import AutoLoRaError
from autolora.data import register_task
from autolora.methods import register_method
from autolora.models import register_backbone, register_parametrisation
from autolora.robust import register_attack

ROOT = Path(__file__).parent.parent
SHORT = ["--epochs", "1", "--lr", "0.05", "--angles", "false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A function that runs Python where the example package is installed; what it printed."
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "example"
    subprocess.run(["cp", "-r", ROOT / "tests" / "example_package", source], check=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--target", target, source]
    subprocess.run(command, check=True, capture_output=True)
    path = os.pathsep.join([str(target), str(ROOT), os.environ.get("PYTHONPATH", "")])

    def run(*args):
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *map(str, args)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def test_the_command_lists_it(run):
    listed = run("-m", "autolora", "list")
    assert "example_squared" in listed and "squared distance (example)" in listed
    assert "400 noisy grey images of stripes" in listed


def test_it_is_trained_by_name(run, tmp_path):
    out = tmp_path / "run"
    names = ["robust_mini_gray", "example_stripes", "--method", "example_squared", "--beta", "5"]
    assert "SA" in run("-m", "autolora", "finetune", *names, *SHORT, "--out", out)
    code = (
        f"from autolora import Run; c = Run.open({str(out)!r}).config; print(c['beta'], c['task'])"
    )
    assert run("-c", code).split() == ["5.0", "example_stripes"]
    assert "squared" in (out / "report.html").read_text()


def test_it_takes_part_in_a_study(run, tmp_path):
    out = tmp_path / "study"
    words = ["example_stripes", "--methods", "example_squared", "at", "--seeds", "1"]
    told = run("-m", "autolora", "compare", *words, *SHORT, "--out", out)
    assert "Not finished" not in told and (out / "study.html").is_file()
    table = (out / "table.csv").read_text()
    assert table.count("finished") == 2 and "example_squared" in table


def test_the_lab_offers_it(run):
    code = (
        "from autolora.lab.controls import Controls; c = Controls(); "
        "print('example_squared' in c.boxes, 'example_stripes' in c.fields['data'].control.options)"
    )
    assert run("-c", code).split() == ["True", "True"]


def test_it_keeps_the_contract(run):
    code = (
        "from autolora.methods import METHODS; from autolora.testing import check_method; "
        "check_method(METHODS['example_squared']); print('kept')"
    )
    assert run("-c", code).split() == ["kept"]


@pytest.mark.parametrize(
    "code",
    [
        "from autolora.models import register_backbone; register_backbone('resnet18', lambda k: k)",
        "from autolora.models import *; from autolora.models.parametrisations import "
        "register_parametrisation as r, PARAMETRISATIONS as P; import dataclasses; "
        "r('lora', dataclasses.replace(P['lokr']))",
        "from autolora.methods import TRADES, register_method; "
        "register_method(type('AT', (TRADES,), {'name': 'at'}))",
    ],
)
def test_a_name_of_ours_is_not_taken(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "already" in done.stderr and "choose another name" in done.stderr


WRONG = {
    "attack": (register_attack, "model, x, y, threat", [3, None, lambda x: x, "pgd"]),
    "backbone": (register_backbone, "number of classes", [3, None, lambda: 1, nn.Linear(2, 2)]),
    "parametrisation": (register_parametrisation, "description, init, delta", [3, None, print]),
    "task": (lambda _, it: register_task(it or 0), "root, size", [3, None, "a", lambda: 1]),
    "method": (lambda _, it: register_method(it), "derived from Method", [3, None, nn.Linear]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_none_of_its_kind_is_refused_at_once(kind):
    register, words, things = WRONG[kind]
    for thing in things:
        with pytest.raises(AutoLoRaError, match=f"is no {kind}: give .*{words}"):
            register("wrong", thing)


@pytest.mark.parametrize(
    "register", [register_attack, register_backbone, lambda name, it: register_task(it, name)]
)
def test_a_name_is_a_text(register):
    with pytest.raises(AutoLoRaError, match="has a name, a text: 3 is none"):
        register(3, lambda *args, **kwargs: None)
