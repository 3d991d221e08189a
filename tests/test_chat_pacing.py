"""When the chat shows what has come of an answer, and when it clears away what that leaves behind."""

from __future__ import annotations

import gc
import itertools
import math
import weakref

import pytest
from textual._styles_cache import StylesCache
from textual.color import Color

from triattn_local.tui import garbage, pacing
from triattn_local.tui.pacing import Pace


def shown_at(pace: Pace, keys: list[float], until_s: float, *, update_s: float = 0.04) -> list[float]:
    """The times at which updates begin while these keys are pressed; looks each millisecond."""
    began = []
    end_s = math.inf
    pressed = list(keys)
    for ms in range(int(until_s * 1000)):
        now_s = ms / 1000
        if now_s >= end_s:
            pace.shown(now_s)
            end_s = math.inf
        due = end_s == math.inf and pace.due(now_s)
        if pressed and now_s >= pressed[0]:
            pressed.pop(0)
            pace.typed(now_s)
            due = end_s == math.inf and pace.echoed(now_s)
        if due:
            pace.began(now_s)
            began.append(now_s)
            end_s = now_s + update_s
    return began


def test_nobody_types() -> None:
    began = shown_at(Pace(), [], 2.0)
    assert 2.0 / pacing.UPDATE_S - 2 <= len(began) <= 2.0 / pacing.UPDATE_S + 1


def test_updates_follow_keys_and_no_key_meets_one() -> None:
    keys = [3.0 + 0.15 * i for i in range(40)]
    began = shown_at(Pace(), keys, 9.0)
    while_typing = [s for s in began if keys[1] < s < keys[-1]]
    assert len(while_typing) > 30, "the answer grows with each key"
    assert all(min(abs(s - key) for key in keys) <= 0.002 for s in while_typing)


def test_slow_typing_does_not_stop_the_answer() -> None:
    keys = [1.0 * i for i in range(10)]
    began = shown_at(Pace(), keys, 10.0)
    assert max(b - a for a, b in itertools.pairwise(began)) <= pacing.TYPING_S + 0.01


def test_slow_updates_take_a_share_of_the_time() -> None:
    began = shown_at(Pace(), [], 10.0, update_s=0.5)
    assert len(began) <= 10.0 / (0.5 / pacing.SHARE) + 1


def test_an_update_that_never_shows_is_not_waited_for() -> None:
    pace = Pace()
    pace.began(1.0)
    assert not pace.due(1.5)
    assert pace.due(1.0 + pacing.LOST_S)


def test_what_piled_up_is_shown_at_once() -> None:
    assert Pace.chars(pacing.MANY_PIECES) == math.inf
    assert Pace.chars(1) == pacing.CHARS


def test_colours_do_not_hold_widgets_that_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StylesCache, "get_inner_outer", StylesCache.get_inner_outer)
    garbage._let_go_of_widgets()
    lines = StylesCache()
    inner, outer = lines.get_inner_outer(Color(1, 2, 3), Color(4, 5, 6))
    assert (inner.background, outer.background) == (Color(4, 5, 6), Color(1, 2, 3))
    gone = weakref.ref(lines)
    del lines
    assert gone() is None


def test_all_is_searched_seldom_while_an_answer_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda generation=2: searched.append(generation))
    monkeypatch.setattr(garbage, "_settle", lambda: searched.append(-1))
    collector = garbage.Collector()
    for second in range(100, 200):
        collector.updated()
        collector.rest(second, busy=True)
    assert searched.count(2) == math.ceil(100 / garbage.SWEEP_S)
    assert searched.count(1) == 100 // garbage.YOUNG_UPDATES
    assert collector.rest(200, busy=False)
    assert not collector.rest(201, busy=False), "nothing has come since"
    assert searched.count(-1) == 1
