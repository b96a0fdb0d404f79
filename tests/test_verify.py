"""A report that was changed by hand, other weights, other data: what `verify` says of each."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from autolora import AutoLoRaError, Run, finetune
from autolora.core.numbers import wilson
from autolora.data.loading import load_task
from autolora.models.backbones import backbone_card
from autolora.models.kept import save_weights
from autolora.robust.counts import Row
from autolora.runs import verifying
from autolora.runs.grading import pretrained
from autolora.runs.hashes import weights_hash
from autolora.runs.verifying import verify

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified") / "run"
    settings = dict(epochs=1, limit=220, lr=0.02, steps=1, progress=False)
    run = finetune("robust_mini_gray", "digits", out=folder, **settings)
    more = ["pgd-5x2-dlr", "pgd-5@l1:4", "contrast:5"]
    run.evaluate(attacks=more, n=50, progress=False)
    return run.path


@pytest.fixture
def run(made, tmp_path):
    return Run.open(shutil.copytree(made, tmp_path / "under another name"))


def changed(run, change):
    "`run` after `change` was done to the dict in its report.json."
    path = run.path / "report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))
    return Run.open(run.path)


def consistent(row, hits):
    "Make `row` say consistently that the images `hits` (a number) were right."
    correct = hits.bit_count()
    low, high = wilson(correct, row["n"])
    row |= {"hits": f"{hits:x}", "correct": correct, "accuracy": correct / row["n"]}
    row |= {"low": low, "high": high, "classes": [], "balanced": None}


def failing(found):
    return {claim.what for claim in found.claims if claim.holds is False}


def test_an_honest_run_holds(run):
    found = verify(run.path, progress=False)
    assert found.holds and {claim.holds for claim in found.claims} == {True}, str(found)
    whats = [claim.what for claim in found.claims]
    for what in ("the weights", "the test images", "SA", "PGD-10", "PGD-5 x 2 DLR", "card.md"):
        assert what in whats


def test_the_command_exits_with_one_where_a_claim_fails(run):
    words = [sys.executable, "-m", "autolora", "verify", str(run.path), "--progress", "false"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and "holds" in done.stdout, done.stderr + done.stdout
    changed(run, lambda report: report["evaluations"][1].update(accuracy=0.999))
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and "FAILS" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["accuracy", "low", "high", "correct", "n", "hits", "classes"])
def test_a_number_changed_by_hand_contradicts_the_others(run, name):
    def better(report):
        row = report["evaluations"][1]
        values = {"hits": "ff", "classes": [[1, 1]], "n": row["n"] + 1}
        values |= {"correct": row["correct"] + 3}
        row[name] = values[name] if name in values else row[name] + 0.01

    found = verify(changed(run, better), n=10, progress=False)
    assert "PGD-10, the numbers" in failing(found)


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_a_row_made_better_consistently_fails_when_it_is_measured(run, at):
    def better(report):
        row = report["evaluations"][at]
        hits = int(row["hits"], 16)
        wrong = next(i for i in range(row["n"]) if not hits >> i & 1)
        consistent(row, hits | 1 << wrong)  # one more image

    found = verify(changed(run, better), progress=False)
    what = {claim.what for claim in found.claims if "answered differently" in claim.why}
    assert len(what) == 1 and what <= failing(found)
    assert {"report.html", "card.md"} <= failing(found)


def test_a_weaker_attack_under_a_strong_name_fails(run):
    def rename(report):
        report["evaluations"][1]["settings"]["steps"] = 100

    assert "PGD-10" in failing(verify(changed(run, rename), progress=False))


def test_other_weights_fail(run):
    state = run.model.state_dict()
    state["net.head.bias"][0] += 0.3
    save_weights(run.path / "model.safetensors", state, run.identity)
    found = verify(run.path, progress=False)
    assert "the weights" in failing(found)


def test_weights_whose_digest_is_wrong_and_those_of_another_run_fail(run):
    state = run.model.state_dict()
    save_weights(run.path / "model.safetensors", state, "another run's identity")
    found = verify(run.path, progress=False)
    assert failing(found) == {"the weights"} and found["PGD-10"].holds is None
    (run.path / "model.safetensors").unlink()
    found = verify(run.path, progress=False)
    assert failing(found) == {"the weights"} and "is gone" in found["the weights"].why


def test_other_data_fail(run, tmp_path):
    import numpy as np

    from autolora.data.loading import load_task

    task = load_task("digits")
    arrays = {}
    for kind, split in task.splits.items():
        labels = split.y.clone()
        if kind == "test":
            labels[:30] = labels[:30].flip(0)
        arrays |= {
            f"x_{kind}": split.images(slice(None)).numpy()[:, 0],
            f"y_{kind}": labels.numpy(),
        }
    found = None
    pack = tmp_path / "digits.npz"
    np.savez(pack, **arrays)
    found = verify(run.path, data=str(pack), progress=False)
    assert "the test images" in failing(found)


@pytest.mark.parametrize("page", ["card.md", "report.html"])
def test_a_page_changed_by_hand_fails(run, page):
    path = run.path / page
    row = Row(**{k: run.report["evaluations"][1][k] for k in ("attack", "correct", "n")})
    shown = str(row) if page == "report.html" else str(row).replace("[", "\\[").replace("]", "\\]")
    text = path.read_text()
    assert shown in text
    path.write_text(text.replace(shown, shown.replace(shown[:4], "99.9"), 1))
    assert failing(verify(run.path, progress=False)) == {page}


def test_an_alarm_that_was_taken_out_fails(made, run, tmp_path):
    alarmed = changed(run, lambda report: report.update(alarms=[]))
    log = alarmed.path / "events.jsonl"
    log.write_text(log.read_text() + '{"event": "alarm", "message": "the model overfits"}\n')
    assert any("the model overfits" in what for what in failing(verify(run.path, progress=False)))


def test_some_images_are_enough_to_catch_it(run):
    def better(report):
        row = report["evaluations"][1]
        consistent(row, 2 ** row["n"] - 1)

    found = verify(changed(run, better), n=60, progress=False)
    assert "PGD-10" in failing(found) and found["SA"].holds


def test_what_an_older_version_wrote_is_not_called_wrong(run):
    def older(report):
        del report["made_with"]
        for row in report["evaluations"]:
            del row["settings"]

    found = verify(changed(run, older), progress=False)
    assert found["the weights"].holds is None and found["PGD-10"].holds is True


def test_nothing_claimed_is_said(run):
    (run.path / "report.json").unlink()
    with pytest.raises(AutoLoRaError, match="nothing is claimed"):
        verify(run.path)
    with pytest.raises(AutoLoRaError, match="no run in"):
        verify(run.path / "nowhere")


@pytest.mark.parametrize("name", ["robust_mini_gray", "robust_mini_rgb"])
def test_the_embedded_weights_are_those_of_their_cards(name):
    card = backbone_card(name)
    assert card["weights"] == weights_hash(pretrained(name))
    for row in card["evaluations"]:
        low, high = wilson(row["correct"], row["n"])
        assert row["accuracy"] == row["correct"] / row["n"]
        assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_a_card_is_measured_again_at_the_size_that_it_says(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.random((8, 3, 64, 64), np.float32), np.arange(8) % 4
    pack = {f"{kind}_{what}": v for kind in ("train", "test") for what, v in (("x", x), ("y", y))}
    np.savez(tmp_path / "large.npz", **pack)
    card = backbone_card("robust_mini_rgb")
    rows = [{"attack": "none", "correct": 0, "n": 8, "accuracy": 0.0}]
    monkeypatch.setattr(verifying, "backbone_card", lambda name: card | {"evaluations": rows})
    found = verifying.verify("robust_mini_rgb", data=tmp_path / "large.npz")
    split = load_task(tmp_path / "large.npz", size=32).test
    with torch.no_grad():
        right = int((pretrained("robust_mini_rgb")(split.images()).argmax(1) == split.y).sum())
    assert found["SA"].why.startswith(f"{right} of 8 now")
    assert found["the test images"].holds is False
