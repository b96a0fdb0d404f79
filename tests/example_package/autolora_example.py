"""A method and a data set for autolora, from another package: nothing of autolora is edited."""

import torch

from autolora.data import Split, Task
from autolora.methods import TRADES


class Squared(TRADES):
    "TRADES with the squared distance of the probabilities in the place of the KL term."

    name = "example_squared"
    label = "squared distance (example)"
    settings = TRADES.settings.but(beta=20.0)
    adversarial = ("squared",)

    def loss(self, nat, adv, y):
        apart = (nat.softmax(1) - adv.softmax(1)).square().sum(1).mean()
        return {"ce_nat": super().loss(nat, adv, y)["ce_nat"], "squared": self.beta * apart}


def example_stripes(root=None, size=None):
    "400 noisy grey images of stripes, upright or lying; made up, no download."
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    x = 0.4 * torch.rand(400, 1, 16, 16, generator=generator)
    x[y == 0, :, :, ::4] += 0.6
    x[y == 1, :, ::4, :] += 0.6
    return Task("example_stripes", ["upright", "lying"], Split(x, y))
