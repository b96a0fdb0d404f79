"""A learning rate that somebody has drawn drives a run as any other does, also after a stop."""

import pytest
import torch

from autolora import AutoLoRaError, Run, finetune
from autolora.show.report import as_code, same_call
from autolora.train.callbacks import Stopped
from autolora.train.learner import Callback

CURVE = "0:0.001,0.5:0.1,1:0.01"
SHORT = dict(
    epochs=2, limit=220, steps=2, test=False, progress=False, batch_size=16, lr_curve=CURVE
)


class Rates(Callback):
    "The learning rate of every step, and a break in the middle of the second epoch."

    def __init__(self, stop=False):
        self.rates = []
        self.stop = stop

    def after_step(self, learner):
        self.rates.append(learner.optimizer.param_groups[0]["lr"])
        if self.stop and learner.epoch == 1 and learner.step == 3:
            raise Stopped


def drawn(folder, method="trades", **given):
    return finetune("robust_mini_gray", "digits", method, out=folder, **SHORT | given)


@pytest.mark.parametrize("method", ["trades", "autolora"])
def test_the_curve_is_the_rate_of_each_step(tmp_path, method):
    look = Rates()
    run = drawn(tmp_path / "run", method, callbacks=[look], name="up and down")
    steps = len(look.rates) // 2
    assert look.rates[0] == pytest.approx(0.001) and look.rates[steps] == pytest.approx(0.1)
    assert max(look.rates) == look.rates[steps]
    middle = steps // 2
    assert look.rates[middle] == pytest.approx(0.001 * 100 ** (middle / steps))
    assert run.config["lr_curve"] == CURVE and run.config["name"] == "up and down"
    assert not run.last("range_test") and run.last("start")["lr"] == pytest.approx(0.001)


def test_a_drawn_run_is_gone_on_with_and_made_again(tmp_path):
    whole = drawn(tmp_path / "whole")
    drawn(tmp_path / "broken", callbacks=[Rates(stop=True)])
    again = drawn(tmp_path / "broken", resume=True)
    made = finetune(**same_call(Run(tmp_path / "whole")), out=tmp_path / "made", progress=False)
    for run in (again, made):
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(tensor, run.model.state_dict()[name]), name


def test_it_stands_in_the_copied_code():
    python, shell = as_code("robust_mini_gray", "digits", lr_curve=CURVE, name="my first")
    assert f"lr_curve='{CURVE}'" in python and f"--lr-curve {CURVE} --name 'my first'" in shell


@pytest.mark.parametrize(
    "given, words",
    [
        ({"lr_curve": "0:0.1,1:0"}, "rates above 0"),
        ({"lr_curve": "0.1"}, "share:rate"),
        ({"lr": 0.1}, "give one of them"),
    ],
)
def test_what_can_not_be_driven_is_refused_before_any_work(tmp_path, given, words):
    with pytest.raises(AutoLoRaError, match=words):
        drawn(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
