"""The bar: after two seconds, on terminals alone, one at a time."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from reprune.core.progress import heard, listening, tell, told
from reprune.verbs import progress


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal is sent, where the bar does not wait."""
    text = io.StringIO()
    monkeypatch.setattr(progress, "AFTER", 0.0)
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=text, force_terminal=True, width=80))
    return text


def test_stage_and_batches_are_shown(screen: io.StringIO) -> None:
    with progress.shown():
        for _ in told("observing batches", range(3), 12):
            pass
        bar = heard()
    assert bar
    assert not heard()
    text = screen.getvalue()
    assert "observing batches" in text
    assert "3/12" in text
    assert text.endswith("\x1b[2K")  # The line is wiped.


def test_one_bar_within_another_is_the_same(screen: io.StringIO) -> None:
    with progress.shown():
        with progress.shown():
            tell("tracing")
        assert heard()
        tell("cutting")
    assert "cutting" in screen.getvalue()


def test_hidden_where_it_is_not_wanted(screen: io.StringIO) -> None:
    with progress.hidden(), progress.shown():
        tell("tracing")
    assert screen.getvalue() == ""


def test_quick_work_is_silent(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "AFTER", 60.0)
    with progress.shown():
        tell("tracing")
    assert screen.getvalue() == ""


def test_pipes_are_silent(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "AFTER", 0.0)
    with progress.shown():
        tell("tracing")
        assert not heard()
    assert capfd.readouterr() == ("", "")


def test_listeners_are_told_how_far_it_is_and_the_log_of_each_stage_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "reprune")
    outer: list[tuple[str, int, int | None]] = []
    inner: list[tuple[str, int, int | None]] = []
    with listening(lambda *event: outer.append(event)):
        assert list(told("reading", "ab", 2)) == ["a", "b"]
        with listening(lambda *event: inner.append(event)):
            tell("tracing")
        tell("cutting", 3)
    tell("nobody", 0, 4)
    assert outer == [("reading", 0, 2), ("reading", 1, 2), ("reading", 2, 2), ("cutting", 3, None)]
    assert inner == [("tracing", 0, None)]
    assert [record.getMessage() for record in caplog.records] == ["reading", "tracing", "nobody"]
