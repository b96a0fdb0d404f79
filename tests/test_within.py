"""What is recorded within an epoch: it changes nothing, repeats to the last digit and is little."""

import pytest
import torch

from autolora import finetune
from autolora.runs.contents import event_fault
from autolora.train.callbacks import Control, Stopped
from autolora.train.learner import Callback

SHORT = dict(epochs=2, limit=220, lr=0.02, steps=3, test=False, progress=False, batch_size=16)


def trained(folder, method="autolora", **given):
    return finetune("robust_mini_gray", "digits", method, out=folder, **SHORT | given)


SAME = [pytest.param(name, marks=pytest.mark.long) for name in ("autolora_paper", "trades")]


@pytest.mark.parametrize("method", ["autolora", "fast_at", "awp", *SAME])
def test_measuring_changes_no_bit_of_the_weights(tmp_path, method):
    steps = {} if method != "fast_at" else {"steps": 1}
    seen = trained(tmp_path / "seen", method, **steps)
    blind = trained(tmp_path / "blind", method, angles=False, **steps)
    for name, tensor in seen.model.state_dict().items():
        assert torch.equal(tensor, blind.model.state_dict()[name]), name
    assert "angle_within" not in blind.history
    within = seen.history.angle_within.dropna()
    assert len(within) and not seen.history.angle_natural.dropna().empty
    assert all(0 <= angle <= 180 for lists in within for angle in lists["angle"])


def test_another_attack_in_the_methods_place_is_seen_and_left_alone(tmp_path):
    saving = dict(attack="single_first", epochs=4)
    seen = trained(tmp_path / "seen", **saving)
    blind = trained(tmp_path / "blind", **saving, angles=False)
    for name, tensor in seen.model.state_dict().items():
        assert torch.equal(tensor, blind.model.state_dict()[name]), name
    assert seen.history.attack_steps.tolist() == blind.history.attack_steps.tolist()
    measured = seen.history.epoch[seen.history.angle_within.notna()]
    assert measured.min() <= 2 < measured.max()  # both attacks


class StopAt(Callback):
    "Breaks a run off in the middle of an epoch."

    def __init__(self, epoch, step):
        self.at = epoch, step

    def after_step(self, learner):
        if (learner.epoch, learner.step) == self.at:
            raise Stopped


def test_a_run_gone_on_with_logs_the_same_points(tmp_path):
    whole = trained(tmp_path / "whole", "trades")
    trained(tmp_path / "broken", "trades", callbacks=[StopAt(1, 5)])
    again = trained(tmp_path / "broken", "trades", resume=True)
    for column in ("loss_within", "angle_within", "angle", "angle_natural", "length_adv"):
        assert whole.history[column].tolist() == again.history[column].tolist(), column


def test_a_step_with_a_weak_attack_is_measured_more_seldom(tmp_path):
    strong = trained(tmp_path / "strong", "at", steps=10, epochs=3)
    weak = trained(tmp_path / "weak", "at", steps=1, epochs=3)
    points = [
        sum(len(lists["at"]) for lists in run.history.angle_within.dropna())
        for run in (strong, weak)
    ]
    assert points[0] > points[1] > 0


def test_where_nothing_is_attacked_there_are_losses_and_no_angles(tmp_path):
    run = trained(tmp_path / "run", "slf", steps=10)
    assert "angle_within" not in run.history
    assert [len(lists["loss"]) for lists in run.history.loss_within] == [11, 11]


def test_the_control_knows_the_epoch_at_work(tmp_path):
    class Look(Callback):
        seen = []

        def before_step(self, learner):
            self.seen.append(control.within)

    control = Control()
    trained(tmp_path / "run", "trades", control=control, callbacks=[Look()])
    in_the_middle = Look.seen[-1]
    assert in_the_middle["epoch"] == 2
    assert 0 < len(in_the_middle["loss_within"]["at"]) < 11
    assert in_the_middle["natural_reaches"] is True


@pytest.mark.parametrize(
    "lists",
    [
        {"at": [0.5]},
        {"at": [0.5], "loss": [1.0, 2.0]},
        {"at": None, "loss": [1.0]},
        {"at": [0.5], "loss": ["<b>"]},
        [0.5, 1.0],
    ],
)
def test_points_of_another_shape_are_refused(lists):
    assert event_fault({"event": "epoch", "epoch": 1, "loss_within": lists})
    assert not event_fault({"event": "epoch", "epoch": 1, "loss_within": None})
    fit = {"at": [0.5, 1.0], "loss": [1.0, None]}
    assert not event_fault({"event": "epoch", "epoch": 1, "loss_within": fit})
