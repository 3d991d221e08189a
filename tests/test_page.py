"""The address that ``serve`` prints, opened in a browser."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served


@pytest.fixture(scope="module", params=["", "sesame"])
def served(request: pytest.FixtureRequest, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    args = ("--ctx", "512", "--no-evict", "--threads", "1")
    key = {"TRIATTN_API_KEY": request.param} if request.param else {}
    with Served(smollm2, tmp_path_factory.mktemp("page") / "log", *args, env=key) as server:
        yield server


def fetched(address: str) -> tuple[int, str, bytes]:
    """Status, type and bytes, as a browser asks for it."""
    try:
        request = urllib.request.Request(address, headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
            if answer.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            return answer.status, answer.headers["Content-Type"], body
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Content-Type", ""), error.read()


def test_the_page_is_there_and_all_that_it_asks_for(served: Served) -> None:
    status, kind, body = fetched(f"{served.root}/")
    assert status == 200, body[:200]
    assert kind.startswith("text/html")
    wanted = set(re.findall(r'(?:src|href)="\.?/([^"]+\.(?:js|css))"', body.decode()))
    wanted |= set(re.findall(r'import\("\.?/([^"]+\.js)"\)', body.decode()))
    assert wanted, body[:2000]
    for name in wanted:
        status, _, body = fetched(f"{served.root}/{name}")
        # without the key, too: a browser asks for the page before a person can give one
        assert (status, bool(body)) == (200, True), name


def test_it_asks_nobody_else(served: Served) -> None:
    """Carried, not downloaded: no address of the page's own code is another machine's."""
    _, _, body = fetched(f"{served.root}/")
    assert not re.findall(r'(?:src|href)="https?://', body.decode())
