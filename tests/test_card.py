"""The report opens in a real browser, offline, in light and in dark, and runs nothing that a name
smuggled in."""

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from autolora.show.card import write_card
from autolora.show.report import write_report

NASTY = "<script>window.smuggled = 1</script>"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def epoch(e):
    return dict(
        epoch=e,
        lr=0.03 / 2 ** (e > 4),
        next_lr=0.03 / 2 ** (e > 3),
        lam1=0.5 / e,
        lam2=6 - 3 / e,
        loss=2 / e,
        ce_nat=0.3 / e,
        ce_adv=1.5 / e,
        kl=0.2 / e,
        sa=0.9 - 0.3 / e,
        ra=0.8 - 0.3 / e,
        n_val=200,
        angle=86.0 - e,
        angle_natural=101.0,
        seconds=8.0,
        new_best=True,
        angle_layers={"net.stem.weight": 88.0, f"net.{NASTY}.weight": 95.0},
        reason=1 if e == 4 else None,
        restored=3 if e == 4 else None,
    )


def full_run(folder):
    config = dict(
        method="autolora",
        backbone="robust_mini_gray",
        task=NASTY,
        threat="linf:0.1",
        epochs=6,
        batch_size=64,
        lr="auto",
        seed=0,
        rank=8,
        num_classes=2,
        classes=["one", NASTY],
        shape=[1, 8, 8],
        n_train=1500,
        n_val=200,
        n_test=300,
        origin=NASTY,
        licence=NASTY,
        versions={"torch": NASTY},
    )
    history = pd.DataFrame([epoch(e) for e in range(1, 7)])
    events = [
        dict(
            event="range_test",
            lr=[0.001, 0.01, 0.1],
            loss=[2.3, 1.5, 4.0],
            chosen=0.03,
            seconds=5.0,
            why=NASTY,
        )
    ]
    nat = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    np.savez(
        folder / "examples.npz",
        nat=nat,
        adv=np.clip(nat.astype(int) + 8, 0, 255).astype(np.uint8),
        y=[0, 1, 1],
        pred_nat=[0, 1, 0],
        pred_adv=[1, 0, 0],
    )
    rows = [dict(attack="none", accuracy=0.9, correct=270, n=300, low=0.86, high=0.93, seconds=1.0)]
    return SimpleNamespace(
        path=folder,
        config=config,
        history=history,
        events=events,
        report=dict(evaluations=rows, split="test", threat="linf:0.1", alarms=[NASTY]),
    )


def one_epoch(folder):
    return SimpleNamespace(
        path=folder,
        config={"method": NASTY, "lr": 0.01},
        history=pd.DataFrame([epoch(1)]),
        events=[],
        report=None,
    )


def begun(folder):
    return SimpleNamespace(
        path=folder,
        config={"method": "trades", "epochs": 12},
        history=pd.DataFrame(),
        events=[],
        report=None,
    )


STATES = pytest.mark.parametrize("state", [full_run, one_epoch, begun])


class Page(HTMLParser):
    "Collects the tags of a page with their attributes."

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@STATES
def test_report_is_one_file(state, tmp_path):
    text = write_report(state(tmp_path)).read_text(encoding="utf-8")
    tags = Page(text).tags
    assert not [t for t in tags if t[0] in ("link", "iframe", "object", "embed", "base")]
    assert len(text) < 2_500_000
    assert not [
        t for t in tags if re.match(r"(https?:)?//", t[1].get("src") or t[1].get("href") or "")
    ]
    assert text.count('id="plotly"') == 1
    assert "smuggled = 1</script>" not in text
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@STATES
def test_report_has_an_outline(state, tmp_path):
    tags = Page(write_report(state(tmp_path)).read_text(encoding="utf-8")).tags
    headings = [tag for tag, _ in tags if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1 and set(headings) == {"h1", "h2"}
    assert ("html", {"lang": "en"}) in tags
    assert all(attrs.get("aria-label") for tag, attrs in tags if tag == "figure")
    anchors = {
        attrs["href"][1:]
        for tag, attrs in tags
        if tag == "a" and attrs.get("href", "").startswith("#")
    }
    assert anchors == {attrs["id"] for tag, attrs in tags if tag == "section"}


@STATES
def test_card_holds_no_markup_of_others(state, tmp_path):
    text = write_card(state(tmp_path)).read_text(encoding="utf-8")
    outside_code = re.sub(r"```.*?```", "", text, flags=re.S)
    assert "<" not in outside_code
    assert "@software{autolora" in text and "Run.open" in text
    assert ("2310.01818" in text) == (state is full_run)  # AutoLoRa's paper for its method only
    for table in re.findall(r"(?:^\|.*\n)+", outside_code, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@STATES
def test_report_in_a_browser(state, scheme, tmp_path, chromium):
    from playwright.sync_api import expect, sync_playwright

    path, complaints, fetched = write_report(state(tmp_path)), [], []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 800, "height": 900}, color_scheme=scheme)
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: fetched.append(request.url) if request.url.startswith("http") else None,
        )
        page.goto(path.as_uri())
        wanted = {full_run: 8, one_epoch: 6, begun: 0}[state]
        expect(page.locator("figure .main-svg:first-of-type")).to_have_count(wanted, timeout=30_000)
        assert page.locator("figure").count() == wanted
        assert page.evaluate("window.smuggled") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 800
        colours = page.evaluate(
            "[...document.querySelectorAll('.gtitle')].map(t => getComputedStyle(t).fill)"
        )
        assert set(colours) <= {"rgb(232, 232, 232)" if scheme == "dark" else "rgb(27, 27, 27)"}
        browser.close()
    assert complaints == [] and fetched == []


def test_a_method_of_ones_own_is_cited(tmp_path, monkeypatch):
    own = SimpleNamespace(label="Mine", bibtex="@misc{mine}", __doc__="A method.\n\nMore.")
    monkeypatch.setattr("autolora.show.report.METHODS", {"mine": own})
    run = begun(tmp_path)
    run.config["method"] = "mine"
    text = write_card(run).read_text(encoding="utf-8")
    assert "Mine. A method." in text and "@misc{mine}" in text and "2310.01818" not in text


def test_a_run_is_done_again_as_it_was_asked(tmp_path):
    run = full_run(tmp_path)
    run.config["asked"] = {"seed": 1, "sync_bn": False, "beta": 3}
    text = write_card(run).read_text(encoding="utf-8")
    assert "seed=1, sync_bn=False, beta=3)" in text
    assert "--seed 1 --sync-bn false --beta 3\n" in text
