"""Where a run is and how fast it goes: a bar on a terminal, plain lines elsewhere."""

import math
import sys
import time

import jax
from tqdm import tqdm

DELAY = 3.0  # seconds before a quiet run shows anything
INTERVAL = 10.0  # seconds between plain lines


class Progress:
    """`with Progress(first, steps, quiet) as progress:` then `progress.step(step)` after each and `show(values)`.

    Args:
        quiet: shows nothing in runs of a few seconds.
        silent: shows nothing at all.
    """

    def __init__(self, first: int, steps: int, quiet: bool, silent: bool = False):
        self._steps, self._said = steps, ''
        self._began: tuple[int, float] | None = None  # a step and its time, after compilation
        self._next = math.inf if silent else time.perf_counter() + (DELAY if quiet else 0)
        terminal = sys.stderr.isatty() and not silent
        self._bar = None
        if terminal:
            self._bar = tqdm(total=steps, initial=first, unit='step', leave=not quiet, delay=DELAY if quiet else 0)

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, values: dict[str, float]) -> None:
        """The latest metrics: loss and examples a second."""
        self._said = f'loss {values["loss"]:.4f}, {values["examples_per_second"]:.0f} examples/s'
        if self._bar is not None:
            self._bar.set_postfix_str(self._said, refresh=False)

    def step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            return
        now = time.perf_counter()
        if self._began is None:
            self._began = step, now
        first, began = self._began
        if self._said and now >= self._next and step > first:
            left = (now - began) / (step - first) * (self._steps - step)
            print(f'step {step}/{self._steps}: {self._said}, {_clock(left)} left', file=sys.stderr, flush=True)
            self._next = now + INTERVAL


class Clock:
    """Examples a second: waiting for data and stepping count, evaluating, saving and compiling do not."""

    def __init__(self, batch_size: int, before: float):
        self.batch_size, self.before = batch_size, before
        self.compiling, self.compiles = 0.0, False  # seconds; whether the last step did
        self.phases: set[int] = set()
        self.window, self.run = [0, 0.0], [0, 0.0]  # steps, seconds
        self.started = self.since = time.perf_counter()

    def step(self, phase: int, wait_for: list) -> None:
        """Ends a step. Lets the host be one step ahead of the device; the first step of a phase compiles."""
        compiles = phase not in self.phases
        jax.block_until_ready(wait_for[-1] if compiles else wait_for[0])
        self.compiles = compiles
        self.phases.add(phase)
        self._count(1)

    def caught_up(self) -> None:
        """The host has waited for the last step as well, which counts as that step's time."""
        self._count(0)

    def _count(self, steps: int) -> None:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        if self.compiles:
            self.compiling += seconds
            return
        for total in (self.window, self.run):
            total[0] += steps
            total[1] += seconds

    def resume(self) -> None:
        self.since = time.perf_counter()

    def rate(self, overall: bool = False) -> float:
        """Examples a second since the last call, or of the whole session."""
        steps, seconds = self.run if overall else self.window
        if not overall:
            self.window = [0, 0.0]
        return steps * self.batch_size / seconds if seconds else 0.0

    def total(self) -> float:
        """Seconds of training, over all sessions."""
        return self.before + time.perf_counter() - self.started


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
