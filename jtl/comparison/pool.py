"""Several worker processes that share a list of tasks.

One thread a worker hands it a task and waits for the answer. A worker that dies (out of memory, say) is replaced and
its task given out once more: a run goes on from its checkpoint. One that dies of the same task twice ends the
comparison. The lock in a run's folder keeps any two processes out of it.
"""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import jtl
from jtl.comparison import work
from jtl.errors import UserError

TRIES = 2  # of a task whose worker dies
PATIENCE = 600  # seconds that a worker has to save its run


class Died(Exception):
    """A worker ended without an answer."""


@contextlib.contextmanager
def workers(number: int, folder: Path) -> Iterator[Callable]:
    """`perform(tasks, stop) -> answers as they come, (task, answer)`; one worker is this process itself.

    Args:
        folder: for the workers' logs, and while it lasts for what they compile: a step that one has compiled the
            others read back. On two cores that took the step of a small ResNet from 1.5 s to 0.3, and twelve short
            runs of four methods by two workers from 42 s of CPU time to 29.
    """
    if number == 1:
        yield _here
        return
    folder.mkdir(parents=True, exist_ok=True)
    slots: list[subprocess.Popen | None] = [None] * number
    try:
        yield lambda tasks, stop: _perform(slots, tasks, stop, folder)
        for process in filter(None, slots):
            process.stdin.close()  # it ends
            process.wait(PATIENCE)
    finally:
        for process in filter(None, slots):
            process.kill()
            process.wait()
        shutil.rmtree(folder / 'compiled', ignore_errors=True)


def _here(tasks: list[dict], stop: Callable[[], bool]) -> Iterator[tuple[dict, dict]]:
    for task in tasks:
        if stop():
            break
        yield task, work.do(task, stop)


def _perform(slots: list, tasks: list[dict], stop: Callable[[], bool], folder: Path) -> Iterator[tuple[dict, dict]]:
    """Hands out the tasks. After `stop()`, or a consumer that leaves, workers save what they are at."""
    waiting, answers, halt = deque(tasks), queue.SimpleQueue(), threading.Event()
    lock = threading.Lock()

    def serve(i: int) -> None:
        try:
            while (task := take()) is not None:
                answers.put((task, answer(i, task)))
        except Exception as e:  # no worker can be started, say
            answers.put(({'name': f'worker {i}'}, {'status': 'failed', 'message': str(e)}))
        finally:
            answers.put(None)

    def take() -> dict | None:
        with lock:
            return waiting.popleft() if waiting and not halt.is_set() else None

    def answer(i: int, task: dict) -> dict:
        for _ in range(TRIES):
            with lock:
                if halt.is_set():
                    return {'status': 'stopped'}
                slots[i] = slots[i] or start(i, len(slots), folder)
            try:
                return ask(slots[i], task)
            except Died as e:
                slots[i], message = None, str(e)
                print(f'{task["name"]}: {message}', file=sys.stderr, flush=True)
        return {'status': 'failed', 'message': f'{message} {_tail(log_of(folder, i))}'}

    threads = [threading.Thread(target=serve, args=(i,), daemon=True) for i in range(len(slots))]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            try:
                got = answers.get(timeout=0.1)
            except queue.Empty:
                if stop() and not halt.is_set():
                    _halt(halt, lock, slots)
                continue
            if got is None:
                running -= 1
            else:
                yield got
    except KeyboardInterrupt:  # asked twice
        _halt(halt, lock, slots, at_once=True)
        raise
    finally:
        if running:
            _halt(halt, lock, slots)
            for thread in threads:
                thread.join(PATIENCE)


def _halt(halt: threading.Event, lock: threading.Lock, slots: list, at_once: bool = False) -> None:
    with lock:
        halt.set()
        for process in filter(None, slots):
            process.kill() if at_once else process.terminate()


def start(i: int, number: int, folder: Path) -> subprocess.Popen:
    """A worker. It has its share of the cores, and of a GPU's memory, unless the environment says otherwise.

    It is in a session of its own, so that Ctrl-C in a terminal reaches it through us alone, and once.
    """
    share = {
        'NPROC': str(max((os.cpu_count() or 1) // number, 1)),  # threads of XLA on the CPU
        'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / number:.3f}',
        'JAX_COMPILATION_CACHE_DIR': str((folder / 'compiled').resolve()),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
    }
    above = str(Path(jtl.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [above, os.environ.get('PYTHONPATH')]))
    with log_of(folder, i).open('ab') as log:
        return subprocess.Popen(
            [sys.executable, '-c', f'from {work.__name__} import main; main()', *sys.argv[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**share, **os.environ, 'PYTHONPATH': path},
        )


def ask(process: subprocess.Popen, task: dict) -> dict:
    """The worker's answer to a task.

    Raises:
        Died: there will be none.
    """
    line = ''
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(task) + '\n')
        process.stdin.flush()
        line = process.stdout.readline()
    if not line.endswith('\n'):
        process.kill()
        raise Died(f'a worker process died of it, with status {process.wait()}.')
    return json.loads(line)


def log_of(folder: Path, i: int) -> Path:
    return folder / f'{i}.log'


def _tail(log: Path) -> str:
    lines = log.read_text(errors='replace').splitlines() if log.exists() else []
    return f'Its log, {log}, ends with: {lines[-1]}' if lines else ''


def check(number: int) -> None:
    if number < 1:
        raise UserError(f'--workers {number}: should be at least 1.')
