"""The attack by hand in a page: painted on, stepped, played and scored, with real models."""

import re

import pytest
from test_lab_faults import until

from autolora.lab.attack import Attack
from autolora.lab.recorded import PLAIN, SHOWN

NAMES = ("names", "sides", "classes", "count", "image", "frame", "trouble")
ARENA = """async ({ esm, state }) => {
  const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
  const { render } = (await import(url)).default;
  const heard = {};
  const send = async order => {
    const fresh = await window.ask(order);
    for (const [name, value] of Object.entries(fresh)) {
      const changed = JSON.stringify(state[name]) !== JSON.stringify(value);
      state[name] = value;
      if (changed) for (const told of heard[`change:${name}`] ?? []) told();
    }
  };
  const on = (event, told) => (heard[event] ??= []).push(told);
  render({ model: { get: name => state[name], on, off() {}, send }, el: document.body });
}"""


@pytest.fixture
def arena(chromium):
    "`(attack, page)`: a page whose messages a real `Attack` hears, as those of a kernel are."
    from playwright.sync_api import sync_playwright

    attack = Attack({"AutoLoRa": SHOWN[0], "naive RFT": SHOWN[1], "plain": PLAIN})
    state = lambda: {name: getattr(attack, name) for name in NAMES}

    def ask(order):
        attack.hear(order)
        return state()

    complaints = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.expose_function("ask", ask)
        page.add_style_tag(content=attack._css)
        page.evaluate(ARENA, {"esm": attack._esm, "state": state()})
        yield attack, page
        browser.close()
    assert complaints == []


def said(page):
    return page.locator("body").inner_text()


def test_step_play_and_score(arena):
    attack, page = arena
    page.get_by_role("button", name="Step").click()
    until(lambda: page.wait_for_timeout(50) or "step 1" in said(page), 20, "a step")
    assert attack.duel.steps == 1
    page.get_by_role("button", name="Play").click()
    until(lambda: page.wait_for_timeout(50) or attack.duel.steps >= 6, 30, "some steps")
    assert re.search(r"\d+ steps a second", said(page))
    page.get_by_role("button", name="Pause attack").click()
    page.get_by_role("button", name="Find the smallest eps").click()
    until(
        lambda: page.wait_for_timeout(50) or said(page).count("smallest eps so far") == 2, 60, "it"
    )
    assert attack.duel.smallest["plain"] < attack.duel.smallest["AutoLoRa"]
    page.get_by_label("Norm").select_option("l1")
    until(lambda: page.wait_for_timeout(50) or attack.duel.threat.norm == "l1", 20, "the norm")
    page.get_by_label("Model 1").select_option("naive RFT")
    until(lambda: page.wait_for_timeout(50) or attack.sides[0] == "naive RFT", 20, "the model")
    page.get_by_label("Test image").fill("7")
    page.keyboard.press("Enter")
    until(lambda: page.wait_for_timeout(50) or attack.duel.steps == 0, 20, "the image")


def test_painted_by_pointer_and_by_keyboard(arena):
    attack, page = arena
    page.get_by_role("button", name="Clear").click()
    until(lambda: page.wait_for_timeout(50) or attack.duel.x.sum() == 0, 20, "an empty image")
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 50, box["y"] + 150, steps=20)
    page.mouse.up()
    until(lambda: page.wait_for_timeout(50) or attack.duel.x.sum() >= 7, 20, "a stroke")
    column = attack.duel.x[0, 0].sum(0).argmax()
    assert column == 4 and attack.duel.x[0, 0, :, column].sum() == attack.duel.x.sum()
    drawn = attack.duel.x.sum()
    page.locator("canvas").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Space")
    until(lambda: page.wait_for_timeout(50) or attack.duel.x.sum() == drawn + 4, 20, "dots")
    page.get_by_label("True class").select_option("1")
    until(lambda: page.wait_for_timeout(50) or attack.duel.y.item() == 1, 20, "the class")


def test_a_file_becomes_the_image(arena, tmp_path):
    import numpy as np
    from PIL import Image

    attack, page = arena
    Image.fromarray(np.full((40, 60, 3), 255, "uint8")).save(tmp_path / "white.png")
    page.get_by_label("or a file").set_input_files(tmp_path / "white.png")
    until(lambda: page.wait_for_timeout(50) or attack.duel.x.min() > 0.99, 20, "the file")
