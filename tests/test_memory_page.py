"""The pages of ``serve`` in a real browser: /memory while a text is read and evicted, and llama-server's own chat."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Served
from texts import prose

pytestmark = pytest.mark.slow
KEY = "sesame"


@pytest.fixture(scope="module")
def served(smollm2_triattn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    args = ("--ctx", "4096", "--budget", "256", "--threads", "1", "--cold", "256MiB")
    log = tmp_path_factory.mktemp("memory") / "log"
    with Served(smollm2_triattn, log, *args, env={"TRIATTN_API_KEY": KEY}) as server:
        yield server


def asked(served: Served, path: str, body: Any = None, key: str = KEY) -> tuple[int, str]:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(served.root + path, data, headers), timeout=600) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def completion(served: Served, n_words: int, n_predict: int = 8) -> None:
    body = {"prompt": prose(n_words), "n_predict": n_predict, "temperature": 0}
    assert asked(served, "/completion", body)[0] == 200


def looked(served: Served) -> dict[str, Any]:
    """As the page looks: twice, for the first look is what makes the server note."""
    for _ in range(2):
        assert asked(served, "/memory/map")[0] == 200
        slots = json.loads(asked(served, "/slots")[1])
    (slot,) = json.loads(asked(served, "/memory/map")[1])["slots"]
    assert slot["id"] == slots[0]["id"]
    return {**slot, "triattention": slots[0]["triattention"]}


def test_the_map_is_what_the_heads_hold(served: Served) -> None:
    completion(served, 700)
    slot = looked(served)
    assert slot["evicts"]
    n_columns = len(slot["words"])
    assert n_columns == min(240, slot["n_tokens"])
    assert len(slot["layers"]) == 30
    held = [[(ord(letter) - ord("a")) / 25 for letter in layer["held"]] for layer in slot["layers"]]
    assert all(len(row) == n_columns for row in held)
    # the first tokens and the window are whole, of the rest there is what the cells hold
    assert all(row[-1] == 1.0 for row in held)
    share = sum(map(sum, held)) / (30 * n_columns)
    assert share == pytest.approx(slot["triattention"]["n_cells_used"] / slot["n_tokens"], abs=0.05)
    assert "".join(slot["words"]).startswith(prose(700)[:200])
    assert slot["cold_bytes_max"] > 0


def test_the_page_needs_no_key_and_what_it_shows_does(served: Served) -> None:
    status, body = asked(served, "/memory", key="")
    assert status == 200
    assert "What each layer holds of the text" in body
    assert "http" not in body.replace("<!doctype html>", ""), "it loads nothing from elsewhere"
    assert asked(served, "/memory/map", key="")[0] == 401


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a headless Chromium, and the addresses that it asked for."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        yield page
        browser.close()


def shot(page: Any, name: str) -> None:
    """For people: into the folder PAGE_SHOTS, if there is one."""
    folder = os.environ.get("PAGE_SHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / name))


PIXELS = """() => { const c = document.querySelector('canvas');
    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    return [c.width, c.height, Array.from(d).join()]; }"""


def test_a_browser_sees_the_map_move(served: Served, page: Any) -> None:
    completion(served, 300)
    page.goto(f"{served.root}/memory")
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("API key").press("Enter")
    page.wait_for_selector("canvas", timeout=60_000)
    page.wait_for_timeout(1500)
    before = page.evaluate(PIXELS)
    assert before[1] == 30
    heading = page.locator("h2").inner_text()
    assert "Slot 0" in heading
    reads = threading.Thread(target=completion, args=(served, 1500, 32))
    reads.start()
    page.wait_for_function("h => document.querySelector('h2').innerText !== h", arg=heading, timeout=120_000)
    reads.join()
    page.wait_for_timeout(2500)
    after = page.evaluate(PIXELS)
    assert after[:2] == [240, 30]
    assert after[2] != before[2]
    assert len(set(after[2].split(","))) > 10, "shades"
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + 20)
    assert "% held" in page.locator(".words").inner_text()
    shot(page, "memory.png")
    assert all(url.startswith((served.root, "data:")) for url in page.asked), page.asked


def test_the_chat_page_answers(served: Served, page: Any) -> None:
    page.goto(f"{served.root}/")
    page.evaluate("key => localStorage.setItem('LlamaCppWebui.config', JSON.stringify({apiKey: key}))", KEY)
    page.reload()
    field = page.get_by_role("textbox").first
    field.wait_for(timeout=60_000)
    if "key" in (field.get_attribute("placeholder") or "").lower():
        field.fill(KEY)
        field.press("Enter")
        page.wait_for_timeout(3000)
        field = page.get_by_role("textbox").first
    field.fill("Say hello.")
    with page.expect_response(lambda response: "chat/completions" in response.url, timeout=120_000) as coming:
        field.press("Enter")
    coming.value.finished()
    pieces = [json.loads(line[6:]) for line in coming.value.text().splitlines() if line.startswith("data: {")]
    answer = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces if piece["choices"])
    words = max(re.findall(r"[A-Za-z ]+", answer), key=len).strip()
    assert words, answer
    page.wait_for_function("words => document.body.innerText.includes(words)", arg=words, timeout=60_000)
    shot(page, "chat.png")
    assert all(url.startswith((served.root, "data:", "blob:")) for url in page.asked), page.asked
