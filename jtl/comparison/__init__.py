"""Ways to fine-tune compared at equal budget: `jtl compare`.

    layout: what is run   ->   pool, work: runs it   ->   results: chosen on validation, told on test   ->   page

Equal budget means the same steps, batches, data, labels, order and augmentation by seed. What a method is tuned over
is its recipe's grid (`jtl.recipes`); the point with the best mean validation metric over seeds is taken for each method
and number of labels. Every run ends with a pass over the test split, as any run does, but only what those at that point
say of it is read.
"""

import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from jtl import run
from jtl.comparison import layout, page, pool, results, work
from jtl.comparison.layout import Request
from jtl.errors import UserError


class Interrupted(Exception):
    """The comparison was asked to stop; the same call goes on with it."""


def comparison(
    request: Request, workdir: Path, *, stop: Callable[[], bool] = lambda: False, workers: int = 1, title: str = ''
) -> str:
    """Runs what is not finished, and writes RESULTS.md, results.png and results.jsonl; returns a text to print.

    Raises:
        UserError: something given is wrong, before anything trains; or a run failed for another reason than that it
            diverged, which only loses it the choice.
        Interrupted: `stop()` was true; what was being run is saved.
    """
    pool.check(workers)
    plans = layout.check(request)
    with run.lock(workdir):
        layout.claim(workdir, layout.record(request, plans, _command()))
        with pool.workers(workers, workdir / 'workers') as perform:
            do = lambda tasks, unit: _do(perform, tasks, stop, unit, workdir)
            first = layout.runs(request, request.first_seeds)
            do(_to_measure(request, first, workdir), 'step')
            do(_to_train(first, workdir), 'run')
            chosen = results.choose(results.rows(first, workdir, request.metric), request.metric)
            _forget(first, chosen, workdir)
            rest = layout.runs(request, request.all_seeds[request.grid_seeds :], only=chosen)
            do(_to_train(rest, workdir), 'run')
        lines = results.table(request, first, rest, chosen, workdir)
        return page.write(workdir, request, lines, results.facts([*first, *rest], workdir), title, workers)


def _command() -> str:
    """What was typed; `python -m jtl` is written as `jtl`."""
    script = Path(sys.argv[0])
    own = script.suffix == '.py' and script.name != '__main__.py'
    return shlex.join([*(['python', str(script)] if own else ['jtl']), *sys.argv[1:]])


def _to_train(runs: list[layout.Run], workdir: Path) -> list[dict]:
    """Tasks for the runs that have neither a result nor an account of how they diverged."""
    folders = {each.name: workdir / each.name for each in runs}
    done = lambda folder: any((folder / name).exists() for name in ('result.json', work.DIVERGED))
    return [
        {'name': each.name, 'folder': str(folders[each.name]), 'values': each.values}
        for each in runs
        if not done(folders[each.name])
    ]


def _to_measure(request: Request, runs: list[layout.Run], workdir: Path) -> list[dict]:
    """Tasks for the steps that have not been measured; this finds, before training, what `prepare` refuses as well."""
    tasks = {}
    for each in runs:
        file = workdir / results.step_file(request, each)
        if not file.exists():
            name = f'a step of {each.method}'
            tasks.setdefault(file, {'name': name, 'file': str(file), 'values': each.values, 'measure': request.metric})
    return list(tasks.values())


def _forget(runs: list[layout.Run], chosen: Mapping[tuple, int], workdir: Path) -> None:
    """Deletes the checkpoints of runs that were tried and not chosen; what they came to is kept."""
    for each in runs:
        if chosen.get((each.method, each.labels)) != each.point:
            shutil.rmtree(workdir / each.name / 'checkpoints', ignore_errors=True)


def _do(perform: Callable, tasks: list[dict], stop: Callable[[], bool], unit: str, workdir: Path) -> None:
    terminal = sys.stderr.isatty()
    with tqdm(total=len(tasks), unit=unit, disable=not terminal, dynamic_ncols=True) as bar:
        for i, (task, answer) in enumerate(perform(tasks, stop), 1):
            status, message = answer['status'], answer.get('message', '')
            bar.set_description(task['name'])
            bar.update()
            if status == 'stopped':
                continue  # the others save theirs
            if status in ('refused', 'failed'):
                raise UserError(f'{task["name"]}: {message}')
            if not terminal or status == 'diverged':
                said = f': diverged, and has lost ({message})' if status == 'diverged' else ''
                print(f'{unit} {i} of {len(tasks)}: {task["name"]}{said}', flush=True)
    if stop():
        raise Interrupted(f'{workdir}: stopped, and saved. The same command goes on with it.')
