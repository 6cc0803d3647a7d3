"""What reading a checkpoint of PyTorch costs, against `torch.load(weights_only=True)`: the same file, in turn.

    python benchmarks/read.py [--file=PATH] [--size=100] [--rounds=7]

Without a file, one of SIZE MB is made: a ResNet's mix of large and small tensors, in the zip format and in the old one.
`read` gives NumPy views of the mapped file, `fp32` then copies them to arrays of their own, as loading into parameters
does. All are timed in this process, in turn with `torch.load`, the file being in the page cache. Memory is the most
that a process of its own held, less what it held when all was imported: all of it, and without the pages of the mapped
file, which the kernel can take back at will. Needs torch.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from jtl.pretrained.formats import archive
from jtl.pretrained.formats import torch as ours


def read(path: Path) -> dict:
    return ours.read(path)


def fp32(path: Path) -> dict:
    return {name: archive.fresh(x) for name, x in ours.read(path).items()}


def torch_load(path: Path) -> dict:
    import torch

    return torch.load(path, weights_only=True, map_location='cpu')


WAYS = {'torch.load': torch_load, 'read': read, 'fp32': fp32}


def make(path: Path, megabytes: float, old: bool) -> None:
    """Blocks of a wide convolution, two narrow ones and a BatchNorm's four vectors and counter, until it is full."""
    import torch

    tensors, size = {}, 0
    while size < megabytes * 1e6:
        block = f'layer{len(tensors) // 8}'
        new = {f'{block}.conv{i}.weight': torch.randn(256, 128, k, k) for i, k in enumerate((1, 3, 1))}
        new |= {f'{block}.bn.{i}': torch.randn(256) for i in range(4)} | {f'{block}.bn.steps': torch.tensor(1)}
        size += sum(x.nbytes for x in new.values())
        tensors |= new
    torch.save({'state_dict': tensors}, path, _use_new_zipfile_serialization=not old)


def held(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f'{field}:')).split()[1])


def peak(way: str, path: Path) -> tuple[int, int]:
    """The most that a way held more than before it: all, and without the pages of files. Sampled every millisecond."""
    if way == 'torch.load':
        import torch  # noqa: F401 before the count begins
    before, most, done = (held('VmRSS'), held('RssAnon')), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], held('VmRSS'))
            most[1] = max(most[1], held('RssAnon'))

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = WAYS[way](path)
    done.set()
    watcher.join()
    most = [max(most[0], held('VmRSS')), max(most[1], held('RssAnon'))]
    del kept
    return most[0] - before[0], most[1] - before[1]


def report(path: Path, rounds: int) -> None:
    size = path.stat().st_size
    seconds = {way: [] for way in WAYS}
    for k in range(rounds + 1):
        for way, function in WAYS.items():
            began = time.perf_counter()
            kept = function(path)
            if k:  # the first fills the page cache
                seconds[way].append(time.perf_counter() - began)
            del kept
    print(f'{path.name}, {size / 1e6:.0f} MB, medians of {rounds}, and times torch.load in the same round:')
    for way, times in seconds.items():
        out = subprocess.run(
            [sys.executable, __file__, f'--file={path}', f'--peak={way}'], check=True, capture_output=True, text=True
        )
        everything, without = (int(n) / size for n in out.stdout.split())
        ratio = statistics.median(a / b for a, b in zip(times, seconds['torch.load']))
        print(
            f'  {way:10} {statistics.median(times) * 1e3:7.1f} ms (best {min(times) * 1e3:.1f}) '
            f'{ratio:5.2f} x; memory {everything:.2f} of the file, {without:.2f} without its pages'
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--file', type=Path)
    parser.add_argument('--size', type=float, default=100)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--peak', choices=WAYS, help='internal: only this way, in this process')
    args = parser.parse_args()
    if args.peak:
        print(*peak(args.peak, args.file))
        return
    import torch

    print(f'{os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}, numpy {np.__version__}')
    if args.file:
        report(args.file, args.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, old in (('zip.pth', False), ('old.pth', True)):
            make(Path(folder) / name, args.size, old)
            report(Path(folder) / name, args.rounds)


if __name__ == '__main__':
    main()
