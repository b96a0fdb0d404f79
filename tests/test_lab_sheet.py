"""The lab's pictures as one file without a network, and as a page that a class looks at, in a real
browser."""

import gzip
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from test_lab import FLAGS, free_port, until

from autolora.cli import main
from autolora.lab.classroom import server_of
from autolora.lab.frames import Frames
from autolora.lab.recorded import SHOWN
from autolora.lab.sheet import write_sheet
from autolora.runs.background import Trainer
from autolora.runs.folder import create_run
from autolora.runs.turns import take_ticket

EVIL = "<img src=x onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    "A function that opens an address, with the network off for files; nothing may go wrong there."
    complaints = []
    contexts = []

    def visit(url, **look):
        context = browser.new_context(offline=url.startswith("file"), **look)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
        page.on("request", lambda asked: asked.url.startswith("http") and asked_for.append(asked))
        page.goto(url)
        page.locator(".main-svg").first.wait_for(timeout=60_000)
        return page

    asked_for = visit.asked_for = []
    visit.complaints = complaints
    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def sheet(tmp_path_factory):
    path = tmp_path_factory.mktemp("sheet") / "taken.html"
    assert main(["sheet", *SHOWN, "--out", str(path)]) == 0
    return path


def panel(page, name):
    return page.locator(f"[data-panel={name}]")


def violations(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    return [v["id"] for v in axe.Axe().run(page).response["violations"]]


def test_one_file_has_it_all_without_a_network(sheet, opened):
    assert sheet.stat().st_size < 6e6
    page = opened(sheet.as_uri())
    assert opened.asked_for == []
    assert page.locator(".autolora-panel").count() == 8
    row = page.locator("#tables tbody tr").first.inner_text()
    assert "AutoLoRa" in row and "98.6 [96.8, 99.4]" in row
    assert panel(page, "lr").get_by_text("too few rises").count()
    assert "Image 1, truly" in panel(page, "example").inner_text()


def test_every_slider_works_by_keyboard_and_the_address_keeps_it(sheet, opened):
    page = opened(sheet.as_uri())
    epoch = page.get_by_label("all epochs up to")
    assert epoch.input_value() == "22"
    epoch.focus()
    page.keyboard.press("Home")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    accuracy = panel(page, "accuracy").locator("p")
    until(lambda: "best at epoch 3" in accuracy.inner_text(), 20, "the third epoch")
    assert "of 1 epoch" in panel(page, "angles").locator("p").inner_text()
    assert "halving" not in panel(page, "lr").inner_text()
    page.get_by_label("share s").focus()
    page.keyboard.press("End")
    until(lambda: "At s = 1: SA" in panel(page, "scales").inner_text(), 20, "the whole branch")
    panel(page, "example").get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    until(lambda: "Image 2, truly" in panel(page, "example").inner_text(), 20, "the image")
    again = opened(page.url)
    assert "best at epoch 3" in panel(again, "accuracy").inner_text()
    assert "Image 2, truly" in panel(again, "example").inner_text()


def test_pictures_and_numbers_can_be_had(sheet, opened, tmp_path):
    page = opened(sheet.as_uri())
    for format, start in (("png", b"\x89PNG"), ("svg", b"<svg")):
        with page.expect_download() as got:
            panel(page, "angles").get_by_role("button", name=format.upper()).press("Enter")
        assert got.value.suggested_filename == f"angles.{format}"
        got.value.save_as(tmp_path / "file")
        assert (tmp_path / "file").read_bytes().startswith(start)
    panel(page, "accuracy").locator("summary").press("Enter")
    assert panel(page, "accuracy").locator("td").count() > 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_for_everybody(sheet, opened, scheme):
    page = opened(sheet.as_uri(), color_scheme=scheme, viewport={"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert violations(page) == []


def hostile(folder):
    "A run whose every text is markup, and which is unfinished."
    texts = {k: EVIL for k in ("method", "task", "threat", "backbone", "origin")}
    given = {"seed": 0, "epochs": 3, "classes": [EVIL] * 10, "notes": [EVIL]}
    run = create_run(folder / "evil", texts | given)
    for e in (1, 2):
        losses = {EVIL: 0.5, "loss": 1.0, "terms": [EVIL]}
        angles = {EVIL: 80.0 + e}
        shares = dict(lr=0.1, sa=0.9, ra=0.4, angle=90.0, angle_natural=90.0, angle_layers=angles)
        run.log("epoch", epoch=e, seconds=1.0, n_val=100, reason=1, **losses, **shares)
    run.log("scales", scale=[0.0, 1.0], sa=[0.8, 0.9], ra=[0.5, 0.4], n=100)
    x = np.random.default_rng(0).random((8, 1, 16, 16))
    pred = np.zeros(8, int)
    np.savez(run.path / "examples.npz", nat=x, adv=x, y=pred, pred_nat=pred, pred_adv=pred)
    return run.path


def test_no_text_of_a_run_becomes_a_script(opened, tmp_path):
    evil = hostile(tmp_path)
    taken = write_sheet([evil, SHOWN[0]], tmp_path / f"{EVIL.replace('/', '')}.html")
    server = served(tmp_path)
    for url in (taken.as_uri(), server.url):
        page = opened(url)
        assert "onerror" in page.locator("body").inner_text()
        for fold in page.locator("summary").all():
            fold.click()
        page.wait_for_timeout(300)
        assert page.locator("img, main script, [onerror]").count() == 0
        assert page.title() != "broken"
    server.shutdown()
    server.server_close()


def served(folder, **more):
    server = server_of([folder], port=0, **more)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def asked(server, path, token=None, method="GET", **headers):
    "`(status, headers, text)`."
    url = f"http://127.0.0.1:{server.server_port}/{path}?token={token or server.token}"
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, found.headers, found.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.fixture
def classroom(tmp_path):
    "`(address, process)` of the command at work."
    (tmp_path / "runs").mkdir()
    said = tmp_path / "said"
    command = [sys.executable, "-m", "autolora", "classroom", tmp_path / "runs"]
    command += ["--port", str(free_port())]
    with said.open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            found = re.compile(r"The classroom is at (\S+)")
            yield until(lambda: found.search(said.read_text()), 60, "the address")[1], process
        finally:
            process.terminate()
    assert process.returncode == 0 and "Traceback" not in said.read_text()


def test_a_class_watches_one_training(opened, classroom, tmp_path):
    address, process = classroom
    trainer = Trainer(tmp_path / "runs")
    first = opened(address)
    assert first.get_by_text("Nothing measured yet").count()
    call = dict(backbone="robust_mini_gray", data="digits", limit=300, steps=1, lr=0.02, epochs=4)
    trainer.start([call | {"out": tmp_path / "runs" / "run"}])
    try:
        accuracy = panel(first, "accuracy").locator("p")
        until(lambda: "best at epoch" in accuracy.inner_text(), 90, "an epoch in the first page")
        second = opened(address)
        last = second.get_by_label("all epochs up to")
        until(lambda: last.input_value() == "4", 90, "the last epoch in the second page")
        until(lambda: first.locator("#tables tbody tr").count(), 90, "the result in the first")
        until(lambda: second.locator("#tables tbody tr").count(), 30, "the result in the second")
        last.focus()
        second.keyboard.press("ArrowLeft")
        until(lambda: "#epochs=3" in second.url, 10, "its own epoch")
        assert first.get_by_label("all epochs up to").input_value() == "4"
        assert violations(first) == []
    finally:
        trainer.stop()
        trainer.wait(30)
    process.terminate()
    ended = first.get_by_text("is the classroom still open?")
    until(lambda: ended.count(), 20, "the end in words")
    assert all("REFUSED" in words or "reset" in words.lower() for words in opened.complaints)
    opened.complaints.clear()


def test_only_reading_and_only_with_the_token(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_TOKEN", "the token of this class")
    server = served(tmp_path)
    assert server.server_address[0] == "127.0.0.1" and server.token == "the token of this class"
    server.token = "plain"
    assert asked(server, "")[0] == asked(server, "now")[0] == 200
    for path in ("", "now", "look/epochs/1", "anything"):
        assert asked(server, path, token="wrong")[0] == 403
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert asked(server, "now", method=method)[0] == 501
    for path in ("look/epochs/7", "look/x", "../now", "%2e%2e/%2e%2e/etc/passwd", "events.jsonl"):
        assert asked(server, path)[0] == 404
    server.shutdown()
    server.server_close()


def test_thirty_pages_ask_and_only_what_is_new_is_sent(tmp_path):
    "Ten seconds of thirty pages; the processor time is that of who asks, too."
    server = served(SHOWN[0])
    _, headers, body = asked(server, "now")
    seen = {"If-None-Match": headers["ETag"]}
    start = time.process_time()
    for _ in range(300):
        status, _, nothing = asked(server, "now", **seen)
        assert status == 304 and nothing == b""
    assert time.process_time() - start < 3
    assert json.loads(gzip.decompress(body))["sliders"]["epochs"]["max"] == 22
    create = hostile(tmp_path)
    server.board.folders.append(create)
    server.board.rest = 0
    until(lambda: asked(server, "now", **seen)[0] == 200, 10, "what is new")
    server.shutdown()
    server.server_close()


def test_the_page_says_what_waits(tmp_path):
    pytest.importorskip("fcntl", reason="without locks of files nobody's end is known")
    server = served(tmp_path)
    said = lambda: json.loads(gzip.decompress(asked(server, "now")[2]))["said"]
    assert said() == ""
    server.board.pace = server.board.rest = 0
    call = dict(backbone="robust_mini_gray", data="digits", epochs=9, method="trades")
    told = {"jobs": [{"call": call, "state": "waiting", "message": ""}]}
    with take_ticket(tmp_path, json.dumps(told)):
        waits = "In line, next: naive RFT (TRADES) on digits with robust_mini_gray, 9 epochs"
        until(lambda: waits in said(), 10, "what waits")
    until(lambda: said() == "", 10, "that its process has ended")
    server.shutdown()
    server.server_close()


def test_a_long_run_and_large_images_have_room(tmp_path):
    run = create_run(tmp_path / "long", {"method": "trades", "task": "t", "seed": 0, "epochs": 200})
    for e in range(1, 201):
        run.log("epoch", epoch=e, seconds=1.0, n_val=100, lr=0.1, sa=0.9, ra=0.4)
    x = np.random.default_rng(0).integers(0, 255, (8, 3, 224, 224), dtype=np.uint8)
    pred = np.zeros(8, int)
    np.savez(run.path / "examples.npz", nat=x, adv=x, y=pred, pred_nat=pred, pred_adv=pred)
    frames = Frames([run])
    assert len(frames.stops("epochs")) <= 30 and frames.stops("epochs")[-1] == "200"
    assert 1 <= len(frames.stops("example")) < 8
    assert write_sheet([run], tmp_path / "long.html").stat().st_size < 6e6
