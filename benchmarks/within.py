"""What it costs to measure the two gradients within the epochs: processor seconds of training
with them over those without, in turns, for a method without a branch, one with, and one whose
attack is a single step.

python benchmarks/within.py --rounds 7"""

import argparse
import tempfile
import time
from functools import partial
from itertools import count
from pathlib import Path

from _harness import HERE, ratios, save, turns

from autolora import finetune
from autolora.train.learner import Callback

CALL = dict(limit=500, epochs=3, lr=0.02, test=False, progress=False)
METHODS = ("trades", "autolora", "fast_at")
FREE = count()


class Clock(Callback):
    "The processor's seconds in the training steps, which others on the machine hardly change."

    seconds = 0.0

    def before_epoch(self, learner):
        self.start = time.process_time()

    def after_train(self, learner):
        self.seconds += time.process_time() - self.start


def train(root, method, angles, found):
    "A short run, whose seconds of training and number of points go into `found`."
    folder = root / f"{next(FREE)}"
    clock = Clock()
    given = dict(angles=angles, out=folder, callbacks=[clock], **CALL)
    history = finetune("robust_mini_gray", "digits", method, **given).history
    found["seconds"].append(clock.seconds)
    if angles:
        found["points"] = sum(len(lists["at"]) for lists in history.angle_within.dropna())
        found["shares"].append(float(history.angle_seconds.sum() / history.seconds.sum()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, default=HERE)
    args = parser.parse_args()
    arms = [(m, measured) for m in METHODS for measured in (True, False)]
    found = {arm: {"seconds": [], "shares": []} for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        calls = {arm: partial(train, Path(folder), *arm, found[arm]) for arm in arms}
        turns(calls, args.rounds, warm=0)
    seconds = {arm: found[arm]["seconds"] for arm in arms}
    over = {
        f"{m}: seconds measured over blind, {found[m, True]['points']} points a run": ratios(
            seconds, (m, False), (m, True)
        )
        for m in METHODS
    }
    over |= {
        f"{m}: share of the epochs, by their own clock": found[m, True]["shares"] for m in METHODS
    }
    named = {f"{m}, {'measured' if on else 'blind'}": seconds[m, on] for m, on in arms}
    title = "The two gradients measured within the epochs, and not at all: three epochs of digits"
    save(args.results, "within", title, named, None, over)


if __name__ == "__main__":
    main()
