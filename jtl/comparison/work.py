"""One piece of work of a comparison, and the process that does one after the other.

A worker reads a task a line from its standard input and answers with a line each, both JSON. It is asked to stop by
SIGTERM, or by its input coming to an end: then it saves the run that it is at, as any run does. What is printed goes to
its standard error.
"""

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

DIVERGED = 'diverged.json'  # in the folder of a run that did, so that it is not run again
STEP = 'step.json'


def do(task: Mapping, stop: Callable[[], bool]) -> dict:
    """Trains one run, or measures one step.

    Args:
        task: `folder`, `values` (a config), and for a measurement `measure`, the metric that must be there, and
            `file`, where the answer is kept.

    Returns:
        `{'status': 'done' | 'diverged' | 'stopped' | 'refused' | 'failed'}`, with a `message`.
    """
    from jtl.errors import UserError  # JAX is imported with them: the environment decides what it finds

    try:
        if 'measure' in task:
            from jtl.comparison.measure import measure

            measure(task['values'], Path(task['file']), task['measure'])
            return {'status': 'done'}
        return _train(task, stop)
    except (UserError, OSError) as e:
        return {'status': 'refused', 'message': str(e)}
    except Exception:
        return {'status': 'failed', 'message': traceback.format_exc()}


def _train(task: Mapping, stop: Callable[[], bool]) -> dict:
    from jtl import run
    from jtl.train import Diverged, Stopped, train

    folder = Path(task['folder'])
    try:
        result = train(task['values'], folder, stop=stop, quiet=True)
    except Diverged as e:
        run.write_json(folder / DIVERGED, {'message': str(e)})
        return {'status': 'diverged', 'message': str(e)}
    except Stopped as e:
        return {'status': 'stopped', 'message': str(e)}
    return {'status': 'done', 'seconds': result['seconds']}


def main() -> None:
    """Works until there is nothing more, or until it is asked to stop."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    tasks, stop = queue.SimpleQueue(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def listen() -> None:
        for line in sys.stdin:
            tasks.put(json.loads(line))
        stop.set()
        tasks.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while (task := tasks.get()) is not None:
        answer = {'status': 'stopped'} if stop.is_set() else do(task, stop.is_set)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
