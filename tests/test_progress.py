"""How fast a run says that it is."""

import time

import pytest

from jtl.progress import Clock


def test_clock_counts_the_wait_for_a_step_that_is_evaluated_at_once():
    """The device takes 50 ms a step, and the host catches up after each of them."""
    clock = Clock(batch_size=10, before=0.0)
    for step in range(4):
        clock.step(phase=0, wait_for=[0.0])  # returns at once: there was nothing to wait for yet
        time.sleep(0.05)
        clock.caught_up()
        time.sleep(0.1 * (step == 1))  # an evaluation, which does not count
        clock.resume()
    assert clock.rate(overall=True) == pytest.approx(10 / 0.05, rel=0.2)
    assert clock.compiling == pytest.approx(0.05, rel=0.2)  # the first step
