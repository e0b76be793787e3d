"""What the command says on stderr while it works: notes, warnings, progress. Nothing with ``--quiet``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

#: A run shorter than this shows no progress bar.
PATIENCE_S = 1.0
#: A pipe is told how far the work is this often; a terminal has a bar.
TELL_EVERY_S = 10.0


@dataclass
class Talk:
    """The voice on stderr; each text is said once."""

    quiet: bool = False
    _said: set[str] = field(default_factory=set)

    def notes(self, texts: Iterable[str]) -> None:
        """What was done to the input."""
        for text in texts:
            self._say(f"note: {text}")

    def warnings(self, texts: Iterable[str]) -> None:
        """What the reader of the result should know."""
        for text in texts:
            self._say(f"warning: {text}")

    def _say(self, text: str) -> None:
        if not self.quiet and text not in self._said:
            self._said.add(text)
            print(text, file=sys.stderr)

    def bar(self) -> Bar:
        """A progress bar; one that never shows where nobody would see it."""
        return Bar(shown=not self.quiet and sys.stderr.isatty())

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Progress of many like pieces of work: a bar with the time left, or in a pipe a line now and then."""
        bar, since = self.bar(), time.monotonic()
        told = since

        def count(done: int, total: int) -> None:
            nonlocal told
            if bar.callback is not None:
                bar.callback(done / total)
                return
            now = time.monotonic()
            if not self.quiet and now - told >= TELL_EVERY_S and done < total:
                told = now
                left_s = (now - since) / done * (total - done)
                print(f"{done} of {total} {what}, about {left_s:.0f} s left", file=sys.stderr)

        with bar.doing(what):
            yield count

    @contextmanager
    def saying(self, what: str) -> Iterator[Callable[[str], None]]:
        """What is being worked on, where nobody knows how much there will be: one line that changes, and vanishes."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda _: None
            return
        from rich.console import Console

        with Console(stderr=True).status(what) as status:
            yield lambda text: status.update(f"{what} {text}")


class Bar:
    """A bar that appears once the work has taken a while, and leaves no trace."""

    def __init__(self, shown: bool) -> None:
        self._shown, self._label, self._since = shown, "", 0.0
        self._progress: Any = None

    @property
    def callback(self) -> Callable[[float], None] | None:
        """What the work calls with the share that is done; None where there is no bar."""
        return self._update if self._shown else None

    @contextmanager
    def doing(self, label: str) -> Iterator[None]:
        """A piece of work with a bar of its own."""
        self._label, self._since = label, time.monotonic()
        try:
            yield
        finally:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None

    def _update(self, share: float) -> None:
        if self._progress is None:
            if time.monotonic() - self._since < PATIENCE_S:
                return
            self._start()
        self._progress.update(self._task, completed=min(max(share, 0.0), 1.0))

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._progress.start()
        self._task = self._progress.add_task(self._label, total=1.0)
