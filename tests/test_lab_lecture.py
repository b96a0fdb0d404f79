"""The lecture of nbs/explanations/lecture.ipynb, followed word for word in a JupyterLab."""

import re

import test_lab as t
from test_lab import browser as browser
from test_lab import until


def shares(page):
    "`(SA, RA)` in percent under each of the playground's pictures."
    told = page.locator(".autolora-playground section p").all_inner_texts()
    return [tuple(map(int, re.match(r"SA (\d+) %, RA (\d+) %", words).groups())) for words in told]


def step(page):
    said = page.locator(".autolora-status").inner_text()
    return int(re.search(r"step (\d+)", said)[1])


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click(timeout=60_000)


def smallest(page):
    "The scores under the two sides of the attack."
    told = page.locator(".autolora-attack .autolora-side p").all_inner_texts()
    return [float(found[1]) for words in told if (found := re.search(r"so far: ([\d.]+)\.", words))]


def test_lecture(tmp_path, browser):
    with t.jupyterlab(tmp_path) as (address, server):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(t.LATE)  # on a machine that is busy, of which nothing is to be seen
        t.open_notebook(page, address, server)

        press(page, "Playground 2-D")
        page.locator(".autolora-status").wait_for(timeout=60_000)
        assert len(set(shares(page))) == 1  # three times the same
        t.shoot(page, "lecture-000")
        press(page, "Play")
        until(lambda: step(page) >= 240, 120, "step 240")
        press(page, "Pause playground")
        autolora, trades, plain = shares(page)
        assert plain[0] == 100 and plain[1] < min(autolora[1], trades[1])
        t.shoot(page, "lecture-015")
        page.locator(".autolora-playground canvas").last.click(position={"x": 150, "y": 120})
        told = page.locator(".autolora-playground section p").last.inner_text()
        assert "degrees apart" in told
        t.shoot(page, "lecture-040")

        press(page, "Reset")
        page.locator(".autolora-playground").get_by_label("learning rate").focus()
        page.keyboard.press("End")
        press(page, "Play")
        until(lambda: step(page) >= 60, 60, "sixty steps that are too long")
        press(page, "Pause playground")
        assert min(sa for sa, _ in shares(page)) <= 65
        t.shoot(page, "lecture-050")

        press(page, "Attack it yourself")
        page.locator(".autolora-attack img").first.wait_for(timeout=60_000)
        for n in range(1, 5):
            press(page, "Step")
            until(lambda n=n: f"step {n}" in t.words(page), 30, f"step {n}")
        assert "fooled" in page.locator(".autolora-attack figcaption").first.inner_text()
        t.shoot(page, "lecture-115")
        press(page, "Find the smallest eps")
        until(lambda: len(smallest(page)) == 2, 60, "two numbers")
        until(lambda: smallest(page)[0] < smallest(page)[1], 30, "the plain net needs less")
        t.shoot(page, "lecture-130")

        press(page, "Pictures")
        until(lambda: "Measured on test images" in t.words(page), 30, "the table")
        page.get_by_label("Begin with").select_option(label="60-second demo")
        t.begun(page)
        until(lambda: sum(t.points(page, "accuracy")) >= 2, 90, "the first points")
        t.shoot(page, "lecture-150")
