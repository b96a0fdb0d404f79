"""What threads of one process do at once: trace a net while others run, attack one net, start the
first training."""

import sys
import threading

import pytest
import torch
from torch import nn

from autolora.core.registry import Registry
from autolora.core.threat import linf
from autolora.models.symbolic import Tracer
from autolora.robust.attacks import pgd
from autolora.robust.fusion import FusedCopy, fused_copy


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)
    return nn.Sequential(*layers, nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 3)).eval()


X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])


def together(*works):
    "Run each of `works` in a thread of its own; the first error that one of them ended in."
    errors = []

    def run(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


class Pausing(nn.Module):
    "While it is traced, another thread gets its turn."

    def __init__(self, meanwhile):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)
        self.meanwhile = meanwhile

    def forward(self, x):
        x = self.conv(x)
        self.meanwhile()
        return self.head(self.norm(x).mean((2, 3)))


def test_other_threads_run_nets_while_one_is_traced():
    other = net()
    wanted = other(X)
    found = []
    model = Pausing(lambda: together(lambda: found.append(other(X)))).eval()
    calls = nn.Module.__call__, nn.Module.__getattr__
    FusedCopy(model)
    Tracer().trace(model)
    assert (nn.Module.__call__, nn.Module.__getattr__) == calls
    assert len(found) == 2 and all(torch.equal(answers, wanted) for answers in found)


def test_tracing_leaves_the_net_as_it_was():
    model = net()
    before = [(type(module), set(vars(module))) for module in model.modules()]
    Tracer().trace(model)
    assert [(type(module), set(vars(module))) for module in model.modules()] == before


NAMES = ["drop", "refresh", "pairs", "net", "graph", "code", "recompile", "training_", "meta"]


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_may_have_any_name(name):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(name, nn.Conv2d(3, 8, 3))
            self.norm = nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.norm(getattr(self, name)(x)).mean((2, 3)))

    model = Named().eval()
    with torch.no_grad(), fused_copy(model, X) as copied:
        assert isinstance(copied, FusedCopy) and len(copied.pairs) == 1
        assert torch.allclose(copied(X), model(X), atol=1e-5)


def test_two_attacks_on_one_net_at_once():
    model = net()
    alone = pgd(model, X, Y, linf(0.1), 3, random_start=False)
    found = [None] * 4

    def attack(i):
        found[i] = pgd(model, X, Y, linf(0.1), 30, random_start=False)

    together(*(lambda i=i: attack(i) for i in range(4)))
    with fused_copy(model, X) as first, fused_copy(model, X) as second:
        assert isinstance(first, FusedCopy) and second is model
    assert all((made - X).abs().max() <= 0.1 + 1e-6 for made in [alone, *found])
    assert all(torch.allclose(made, found[0], atol=1e-3) for made in found)


def test_a_registry_is_whole_for_each_thread_that_reads_it_first(tmp_path, monkeypatch):
    (tmp_path / "slow_room.py").write_text(
        "import time\n"
        "from test_threads_registry import known\n"
        "assert 'thing' not in known\n"  # a room may read it while it is imported
        "time.sleep(0.3)\n"
        "known.register('thing', print)\n"
    )
    known = Registry("thing", rooms=("slow_room",))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "test_threads_registry", type(sys)("test_threads_registry"))
    sys.modules["test_threads_registry"].known = known
    found = []
    together(*[lambda: found.append(known["thing"])] * 4)
    assert found == [print] * 4
    sys.modules.pop("slow_room")
