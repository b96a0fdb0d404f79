"""The playground in a page: its gradients against torch's, its story, pointer, keyboard, frames."""

import contextlib
import re

import pytest
import torch
from test_lab_faults import HOST, until
from torch.nn import functional as F

from autolora.lab.playground import Playground
from autolora.robust.losses import autolora_loss, trades_loss

MODULE = """const P = await import(
    URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));"""
GRADIENTS = f"""async ({{ esm, method }}) => {{
  {MODULE}
  const random = P.randomNumbers(5);
  const cloud = P.cloudOf("xor", random).slice(0, 9);
  const learner = P.newLearner(method, P.newNet(random), random);
  for (const {{ b }} of learner.branch ?? []) b.forEach((_, k) => {{ b[k] = random() - 0.5; }});
  learner.sa = 0.7;
  const advs = cloud.map(({{ point }}) => point.map(v => v + 0.2 * (random() - 0.5)));
  const found = P.gradients(learner, cloud, advs);
  const lists = layer => Object.fromEntries(Object.entries(layer).map(([k, v]) => [k, [...v]]));
  const plain = part => part && part.map(lists);
  return {{
    cloud, advs, net: plain(learner.net), branch: plain(learner.branch),
    grads: plain(found.net), slow: plain(found.branch) }};
}}"""
STORY = f"""async ({{ esm }}) => {{
  {MODULE}
  const told = {{}};
  for (const method of ["autolora", "trades", "plain"]) {{
    const random = P.randomNumbers(7), cloud = P.cloudOf("turned", random);
    const learner = P.newLearner(method, P.robustNet(), P.randomNumbers(3));
    for (let step = 0; step < 240; step++) P.trainStep(learner, cloud, 0.2, 0.3, random);
    told[method] = [learner.sa, learner.ra];
  }}
  return told;
}}"""
SIZES = [2, 16, 16, 2]


@pytest.fixture
def page(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1000, "height": 800})
        browser.close()


def tensors(layers, shapes):
    "The typed arrays of a page as float64 leaves."
    made = [
        {k: torch.tensor(v, dtype=torch.float64).view(shape[k]) for k, v in layer.items()}
        for layer, shape in zip(layers, shapes, strict=True)
    ]
    return [{k: v.requires_grad_() for k, v in layer.items()} for layer in made]


def logits(x, layers):
    for i, layer in enumerate(layers):
        x = F.linear(x, layer["w"], layer["b"])
        x = x if i == len(layers) - 1 else x.tanh()
    return x


@pytest.mark.parametrize("method", ["autolora", "trades", "plain"])
def test_its_gradients_are_those_of_torch(page, method):
    found = page.evaluate(GRADIENTS, {"esm": Playground()._esm, "method": method})
    pairs = list(zip(SIZES, SIZES[1:], strict=False))
    net = tensors(found["net"], [{"w": (m, n), "b": (m,)} for n, m in pairs])
    x, x_adv = (
        torch.tensor(values, dtype=torch.float64)
        for values in ([one["point"] for one in found["cloud"]], found["advs"])
    )
    y = torch.tensor([one["y"] for one in found["cloud"]])
    natural = net
    leaves = [v for layer in net for v in layer.values()]
    wanted = [v for layer in found["grads"] for v in (layer["w"], layer["b"])]
    if method == "autolora":
        branch = tensors(found["branch"], [{"a": (2, n), "b": (m, 2)} for n, m in pairs[:2]])
        changed = [
            {"w": layer["w"].detach() + own["b"] @ own["a"], "b": layer["b"].detach()}
            for layer, own in zip(net, branch, strict=False)
        ]
        natural = [*changed, net[-1]]
        leaves += [v for layer in branch for v in layer.values()]
        wanted += [v for layer in found["slow"] for v in (layer["a"], layer["b"])]
    nat, adv = logits(x, natural), logits(x_adv, net)
    terms = {
        "autolora": lambda: autolora_loss(nat, adv, y, 0.3, 6.0, lam_adv=1.0),
        "trades": lambda: trades_loss(nat, adv, y),
        "plain": lambda: {"ce_nat": F.cross_entropy(nat, y)},
    }[method]()
    grads = torch.autograd.grad(len(y) * sum(terms.values()), leaves)
    for ours, theirs in zip(wanted, grads, strict=True):
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs.flatten())


def test_a_plain_net_is_fooled_where_robust_ones_are_not(page):
    told = page.evaluate(STORY, {"esm": Playground()._esm})
    assert told["plain"][0] > 0.95 > 0.8 > told["plain"][1]
    assert all(told[method][1] > told["plain"][1] + 0.05 for method in ("autolora", "trades"))


@contextlib.contextmanager
def shown(page):
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.evaluate(HOST, {"esm": Playground()._esm, "state": {}})
    yield page.locator("output").last
    assert complaints == []


def count(page):
    return int(re.search(r"(\d+) points", page.locator(".autolora-status").inner_text())[1])


def test_by_pointer(page):
    with shown(page):
        page.get_by_role("button", name="Step").click()
        assert "step 1" in page.locator(".autolora-status").inner_text()
        assert page.locator("section p").all_inner_texts()[0].startswith("SA ")
        page.get_by_label("Fine-tune on").select_option(label="my own points")
        assert count(page) == 0
        for i, shape in enumerate(["sets a round point", "sets a square point"]):
            page.get_by_label("A click").select_option(label=shape)
            for spot in ((60 + 100 * i, 60), (60 + 100 * i, 120)):
                page.locator("canvas").first.click(position=dict(zip("xy", spot, strict=True)))
        assert count(page) == 4
        page.get_by_role("button", name="Play").click()
        until(lambda: "frames a second" in page.locator(".autolora-status").inner_text(), 30, "it")
        page.get_by_role("button", name="Pause playground").click()


def test_by_keyboard_alone(page):
    with shown(page):
        page.get_by_label("Fine-tune on").focus()
        page.keyboard.press("End")
        assert count(page) == 0
        for key in ("ArrowLeft", "ArrowRight"):  # a round point, then a square one
            page.get_by_label("A click").focus()
            page.keyboard.press("ArrowDown")
            page.locator("canvas").first.focus()
            for _ in range(6):
                page.keyboard.press(key)
            page.keyboard.press("Space")
        assert count(page) == 2
        page.get_by_role("button", name="Step").focus()
        for _ in range(30):
            page.keyboard.press("Enter")
        assert "step 30" in page.locator(".autolora-status").inner_text()
        page.get_by_role("slider", name=re.compile("^eps")).focus()
        page.keyboard.press("ArrowRight")
        page.get_by_role("button", name="Reset").focus()
        page.keyboard.press("Space")
        assert "step 0" in page.locator(".autolora-status").inner_text()


def test_it_moves(page):
    "On a free machine 60 frames a second, see benchmarks/lab.py; here only that it isn't stuck."
    with shown(page):
        page.get_by_role("button", name="Play").click()
        page.wait_for_timeout(3000)
        rate = re.search(r"(\d+) frames", page.locator(".autolora-status").inner_text())
        assert int(rate[1]) >= 5
