"""The learning-rate rule against the released code's own decisions, and what a notebook can't test
about the module."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autolora.train.schedule import AutoLR, apgd_checkpoints, published_checkpoints, replay

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden" / "lr_schedule.json"
SEQUENCES = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else []
needs_golden = pytest.mark.skipif(
    not SEQUENCES,
    reason="the released code's recorded decisions (golden/lr_schedule.json) are not at hand",
)


@needs_golden
def test_all_sequences_are_there():
    assert len(SEQUENCES) == 42


@needs_golden
@pytest.mark.parametrize(
    "golden", SEQUENCES, ids=[f"{g['setting']}-{g['kind']}-{i}" for i, g in enumerate(SEQUENCES)]
)
def test_released_timing_decision_for_decision(golden):
    decisions = replay(
        golden["ra"],
        lr=golden["initial_lr"],
        checkpoints=golden["checkpoints"],
        rho=golden["rho"],
        factor=golden["divide"],
        min_lr=golden["stop_below"] or 0,
        timing="released",
    )
    ours = [
        dict(epoch=d.epoch, new_best=d.new_best, condition=d.reason, restore=d.restore, lr=d.lr)
        for d in decisions
    ]
    assert ours == golden["trace"]


RAS = [
    0.1,
    0.2,
    0.15,
    0.3,
    0.31,
    0.29,
    0.32,
    0.28,
    0.27,
    0.33,
    0.30,
    0.31,
    0.32,
    0.30,
    0.29,
    0.34,
    0.30,
    0.35,
]


@pytest.mark.parametrize("timing", ["paper", "released"])
@pytest.mark.parametrize(
    "checkpoints", [None, apgd_checkpoints(18), published_checkpoints(18, every=3)]
)
@pytest.mark.parametrize("cut", range(len(RAS)))
def test_resumed_anywhere_decides_the_same(timing, checkpoints, cut):
    whole = AutoLR(0.1, checkpoints, timing=timing)
    expected = [whole.step(ra) for ra in RAS]
    first = AutoLR(0.1, checkpoints, timing=timing)
    before = [first.step(ra) for ra in RAS[:cut]]
    second = AutoLR()
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert before + [second.step(ra) for ra in RAS[cut:]] == expected
    assert second.state_dict() == whole.state_dict()


def test_needs_no_torch():
    code = (
        "import sys, autolora.train.schedule; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
