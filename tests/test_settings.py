"""A setting stands in one table, and everything that shows settings is made from it."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from autolora import AutoLoRaError, finetune, pretrain, tune
from autolora.methods.registry import METHODS
from autolora.runs.settings import SETTINGS
from autolora.runs.study import compare

ROOT = Path(__file__).parent.parent
SHORT = dict(epochs=1, limit=220, steps=1, angles=False, progress=False)

DUMMY = """
import inspect, sys
from pathlib import Path
from autolora.core.settings import Setting
from autolora.runs.settings import SETTINGS

SETTINGS.add(Setting("dummy", 3, "a number of no use", (int,), 0, label="Dummy"))

from autolora import AutoLoRaError, Run, cli, compare, finetune, tune
from autolora.lab.choices import calls_of, code_of
from autolora.lab.controls import Controls
from autolora.runs.jobs import Job
from autolora.runs.processes import perform
from autolora.runs.search import Search

folder = Path(sys.argv[1])
short = dict(epochs=1, limit=220, steps=1, lr=0.01, angles=False, progress=False)

for call in (finetune, compare, tune):
    assert inspect.signature(call).parameters["dummy"].default == 3, call
    assert "a number of no use" in call.__doc__

for verb in ("finetune", "compare", "tune"):
    assert "--dummy" in cli.VERBS[verb].parser(verb).format_help(), verb

run = finetune("robust_mini_gray", "digits", "at", out=folder / "run", dummy="4", **short)
assert Run.open(run.path).config["dummy"] == 4 and run.config["asked"]["dummy"] == 4
for page in ("report.html", "card.md"):
    text = (run.path / page).read_text().replace("&#x27;", "'")
    assert "dummy=4" in text and "--dummy 4" in text, page
try:
    finetune("robust_mini_gray", "digits", out=folder / "wrong", dummy="many", **short)
    raise SystemExit("not refused")
except AutoLoRaError as error:
    assert "dummy must be a whole number of 0 or more" in str(error)

controls = Controls()
field = controls.fields["dummy"].control
assert (field.description, field.value) == ("Dummy", 3) and "of no use" in field.tooltip
field.value = 5
python, shell = code_of(calls_of(controls.read()))
assert "dummy=5" in python and "--dummy 5" in shell

here = lambda calls, **more: [perform(call) for call in calls]
common = {k: v for k, v in short.items() if k != "lr"}
study = compare(["at"], "digits", seeds=1, out=folder / "study", runner=here, dummy=6, **common)
assert study.table.state.tolist() == ["finished"], study.table.message
assert study.run(study.cells[0]).config["dummy"] == 6 and study.table.dummy.tolist() == [6]

search = Search({"lr": (0.01,)}, ladder=((1.0, 1),))
common = {k: v for k, v in common.items() if k != "steps"}
tuning = tune("robust_mini_gray", "digits", "at", 9, search, out=folder / "tune", runner=here,
              dummy=7, **common)
assert tuning.best.config["dummy"] == 7
print("found everywhere")
"""


def test_a_dummy_setting_is_found_everywhere(tmp_path):
    command = [sys.executable, "-c", DUMMY, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("found everywhere"), done.stderr[-3000:]


@pytest.mark.parametrize("call", [finetune, compare, tune, pretrain])
def test_settings_stand_in_the_signature(call):
    shown = inspect.signature(call).parameters
    assert {"limit", "size", "root", "augment", "progress"} <= set(shown)
    assert all(SETTINGS[name].about in call.__doc__ for name in ("limit", "root"))


@pytest.mark.parametrize("method", list(METHODS))
def test_a_method_has_no_setting_that_all_runs_have(method):
    assert not METHODS[method].settings.keys() & SETTINGS.keys()


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("autolora", {"beta": 3}, "beta is no setting of autolora, only of trades"),
        ("trades", {"betta": 3}, "did you mean 'beta'"),
        ("autolora", {"limt": 300}, "did you mean 'limit'"),
        ("autolora", {"options": {"kl": "none"}}, "Unknown setting of autolora 'options'"),
        ("autolora", {"augment": "shft"}, "did you mean 'shift'"),
        ("autolora", {"attack": "grown"}, "did you mean 'growing'"),
    ],
)
def test_what_a_run_does_not_know_is_refused(tmp_path, method, given, words):
    with pytest.raises(AutoLoRaError, match=words):
        finetune("robust_mini_gray", "digits", method, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_a_head_of_a_list_is_no_error():
    code = "autolora list | head -n 1"
    python = f"{sys.executable} -m autolora"
    done = subprocess.run(
        code.replace("autolora", python, 1), shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("backbones\n", "")
