"""A learning rate is drawn in a page, by pointer and by keyboard, and drives a run of the lab."""

import math

import pytest
from test_lab_faults import until

from autolora import Lab, Run
from autolora.lab.curve import Curve
from autolora.train.schedule import read_curve

HOST = """async ({ esm, state }) => {
  const url = URL.createObjectURL(new Blob([esm], { type: "text/javascript" }));
  const { render } = (await import(url)).default;
  const set = (name, value) => { state[name] = value; window.told(name, value); };
  render({ model: { get: name => state[name], set, save_changes() {}, on() {}, off() {} },
           el: document.body });
}"""


@pytest.fixture
def drawn(chromium):
    "`(curve, page)`: a real `Curve` that hears what is drawn in the page."
    from playwright.sync_api import sync_playwright

    curve = Curve(reference=[[0.0, 0.05], [0.5, 0.02]])
    complaints = []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 700, "height": 500})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.expose_function("told", lambda name, value: setattr(curve, name, value))
        page.add_style_tag(content=curve._css)
        state = {"rates": curve.rates, "reference": curve.reference}
        page.evaluate(HOST, {"esm": curve._esm, "state": state})
        yield curve, page
        browser.close()
    assert complaints == []


def place(page, share, rate):
    "Where a share of the run and a rate lie in the page."
    box = page.locator("canvas").bounding_box()
    x = (62 + share * (640 - 62 - 14)) / 640
    y = (12 + (280 - 12 - 42) * -math.log10(rate) / 4) / 280
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def said(page):
    return page.locator("output").inner_text()


def test_a_stroke_sets_every_point_that_it_passes(drawn):
    curve, page = drawn
    page.mouse.move(*place(page, 0, 0.1))
    page.mouse.down()
    page.mouse.move(*place(page, 1, 0.001))  # in one leap, as a quick hand does
    page.mouse.up()
    page.mouse.move(*place(page, 0.5, 1))  # which is no stroke any more
    until(lambda: curve.rates[12] != 0.05, 5, "the stroke")
    for i, rate in enumerate(curve.rates):
        assert rate == pytest.approx(0.1 * 0.01 ** (i / 12), rel=0.1)
    assert "at 100 % of the run" in said(page) and "dashed" in said(page)
    points = read_curve(curve.text)
    assert len(points) == 13 and points[0][1] == pytest.approx(0.1, rel=0.1)


def test_a_click_sets_one_point_and_nothing_leaves_the_axes(drawn):
    curve, page = drawn
    page.mouse.click(*place(page, 0.5, 0.2))
    until(lambda: curve.rates[6] != 0.05, 5, "the click")
    assert curve.rates[6] == pytest.approx(0.2, rel=0.1)
    assert [rate for i, rate in enumerate(curve.rates) if i != 6] == [0.05] * 12
    page.mouse.move(*place(page, 1, 0.0002))
    page.mouse.down()
    page.mouse.move(690, 490)
    page.mouse.up()
    until(lambda: curve.rates[12] == 0.0001, 5, "the lowest rate")


def test_by_keyboard_alone(drawn):
    curve, page = drawn
    page.get_by_label("Begin with").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # falls to the end
    until(lambda: curve.rates[0] == 0.1 and curve.rates[-1] == 0.001, 5, "the shape")
    page.keyboard.press("Tab")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    before = curve.rates[3]
    for _ in range(4):
        page.keyboard.press("ArrowUp")
    until(lambda: curve.rates[3] > 1.5 * before, 5, "a point that rises")
    assert "at 25 % of the run: learning rate" in said(page)
    for _ in range(99):
        page.keyboard.press("ArrowUp")
    until(lambda: curve.rates[3] == 1, 5, "the highest rate")
    page.keyboard.press("ArrowLeft")
    assert "at 17 % of the run" in said(page)


def words_of(lab):
    return lab.contest.board.value


def test_a_drawn_run_and_an_automatic_one_meet_on_the_board(tmp_path):
    lab = Lab(tmp_path / "runs")
    try:
        for name, value in dict(limit="220", epochs="1", autoattack=0).items():
            lab.controls.fields[name].control.value = value
        lab.controls.boxes["autolora"].value = False
        lab.contest.name.value = "<b>mine</b>"
        lab.contest.curve.rates = [0.01] * 13
        lab.contest.copy.click()
        assert "lr_curve='0:0.01,0.08333:0.01" in lab.code.value
        assert "--name '<b>mine</b>'" in lab.code.value
        lab.contest.start.click()
        assert "✕" not in lab.state.value, lab.state.value
        until(lambda: "drawn" in words_of(lab), 120, "the drawn run")
        until(lambda: not lab.trainer.busy and lab.follower.thread is None, 30, "its end")
        assert "&lt;b&gt;mine" in words_of(lab) and "<b>mine" not in words_of(lab)
        assert "alone here" in words_of(lab)
        lab.contest.name.value = ""
        lab.contest.auto.click()
        until(lambda: lab.trainer.busy, 20, "the other run")
        until(lambda: not lab.trainer.busy and lab.follower.thread is None, 120, "its end")
        until(lambda: "ahead" in words_of(lab), 10, "a verdict")
        runs = [Run(path.parent) for path in tmp_path.glob("runs/*/config.json")]
        assert sorted(bool(run.config["lr_curve"]) for run in runs) == [False, True]
        assert lab.contest.curve.reference  # the automatic one, dashed
    finally:
        lab.close()


def test_a_rate_that_is_fixed_beside_it_stands_back(tmp_path):
    lab = Lab(tmp_path / "runs")
    try:
        lab.controls.fields["lr"].control.value = "0.7"
        lab.contest.copy.click()
        assert "lr_curve" in lab.code.value and "lr=0.7" not in lab.code.value
    finally:
        lab.close()
