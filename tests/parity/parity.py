"""What every family's parity test needs: a reference that hides no mistake, and our model on its tensors."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
import torch

from jtl import models, tree
from jtl.pretrained.recognise import closest, recognise
from jtl.pretrained.table import export, translate

TOLERANCE = 1e-4  # of the largest value of the reference, float32


def perturb(module: torch.nn.Module, seed: int = 0, gain: float = 1) -> torch.nn.Module:
    """Every parameter and statistic away from 0 and 1, so that none can be forgotten or swapped unnoticed."""
    shake((*module.named_parameters(), *module.named_buffers()), seed, gain)
    return module.eval()


@torch.no_grad()
def shake(tensors: Iterable[tuple[str, torch.Tensor]], seed: int = 0, gain: float = 1) -> None:
    """The same in place, for tensors by name; the first axis of a kernel is that of its outputs.

    Args:
        gain: of the kernels. Through many layers without a residual a signal dies, and mistakes with it, unless it is
            above 1.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = lambda x, low, high: torch.rand(x.shape, generator=generator) * (high - low) + low
    for name, x in tensors:
        if not x.is_floating_point():
            continue
        if name.endswith(('running_var', 'moving_variance')):
            x.copy_(noise(x, 0.5, 1.5))
        elif x.ndim < 2:
            x.add_(noise(x, -0.3, 0.3))
        else:
            x.add_(noise(x, -0.5, 0.5) * (2 / x[0].numel()) ** 0.5).mul_(gain)


def arrays(state_dict: dict) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy() for name, x in state_dict.items()}


class Ours:
    """Our model for a state dict, recognised by its names; compiled once for all tensors of the same shapes.

    Args:
        jit: how it is compiled; `tiny.jit` is faster where that takes longer than all the rest.
        overrides: of the model that is recognised.
    """

    def __init__(self, tensors: dict[str, np.ndarray], config: dict, jit: Callable = jax.jit, **overrides):
        known = recognise(tensors, config, 'reference')
        assert not known.translation.unknown, known.translation.unknown
        LAST.update(family=known.family, names=known.dialect.name)
        self.known, self.config, self.wrapper = known, config, closest(tensors).wrapper
        leaves = known.translation.leaves
        classes = leaves['head/kernel'].shape[-1] if 'head/kernel' in leaves else 2
        self.model = models.build(num_classes=classes, **{**known.model, **overrides})
        self.apply = jit(
            lambda variables, batch: self.model.apply(
                variables, batch, train=False, capture_intermediates=True, mutable=['intermediates']
            )
        )
        self.leaves = leaves

    def __call__(self, batch: dict, tensors: dict[str, np.ndarray] | None = None) -> tuple[dict, dict]:
        """`(outputs, the output of every module by path)`."""
        leaves = self.leaves
        if tensors is not None:
            bare = {name.removeprefix(self.wrapper): x for name, x in tensors.items()}
            leaves = translate(bare, self.known.dialect).leaves
        whole = tree.unflatten({path: np.array(leaf, np.float32) for path, leaf in leaves.items()})
        statistics = whole.pop('model', {})
        if 'head' not in whole:
            whole['head'] = {'kernel': np.zeros((self.features(whole, batch), 2)), 'bias': np.zeros(2)}
        outputs, captured = self.apply({'params': whole, **statistics}, batch)
        inner = {path.removesuffix('/__call__/0'): x for path, x in tree.flatten(captured['intermediates']).items()}
        return jax.tree.map(np.asarray, outputs), inner

    def features(self, params: dict, batch: dict) -> int:
        shapes = jax.eval_shape(lambda: self.model.init(jax.random.key(0), batch, train=False))
        return shapes['params']['head']['kernel'].shape[0]


LAST = {}  # what the model of the last `Ours` is


def difference(ours: np.ndarray, reference) -> float:
    """The largest absolute difference, as a fraction of the reference's largest value.

    With the environment variable JTL_PARITY, a file, what is within the tolerance is noted there, a JSON object a line,
    for the table in README.
    """
    reference = reference.detach().numpy() if isinstance(reference, torch.Tensor) else np.asarray(reference)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    found = float(np.abs(ours - reference).max() / np.abs(reference).max())
    test = os.environ['PYTEST_CURRENT_TEST'].split(' ')[0]
    if (log := os.environ.get('JTL_PARITY')) and found <= TOLERANCE and 'swap' not in test:
        with open(log, 'a') as file:
            file.write(json.dumps({'test': test, **LAST, 'difference': found}) + '\n')
    return found


def swaps(
    tensors: dict[str, np.ndarray],
    most: int = 40,
    seed: int = 0,
    pairs: Callable[[list], Iterable] = itertools.pairwise,
) -> Iterator[tuple[str, dict]]:
    """`(what, tensors with that mistake)`: two of one shape exchanged; first or last two axes that are alike, too.

    Args:
        most: a sample of so many mistakes.
        pairs: of the names of one shape, those to exchange; neighbours.
    """
    same, mistakes = {}, []
    for name, x in tensors.items():
        if x.ndim and np.issubdtype(x.dtype, np.floating):
            same.setdefault(x.shape, []).append(name)
            for i, j in {(0, 1), (x.ndim - 2, x.ndim - 1)} if x.ndim > 1 else ():
                if x.shape[i] == x.shape[j] > 1:
                    mistakes.append((f'{name}, axes {i} and {j}', {name: x.swapaxes(i, j)}))
    chosen = [pair for names in same.values() for pair in pairs(names)]
    mistakes += [(f'{a} for {b}', {a: tensors[b], b: tensors[a]}) for a, b in chosen]
    for i in np.random.default_rng(seed).permutation(len(mistakes))[:most]:
        what, change = mistakes[i]
        yield what, {**tensors, **change}


def check_swaps(
    ours: Ours,
    tensors: dict,
    batch: dict,
    most: int = 40,
    key: str = 'logits',
    unseen: Callable[[str], bool] = lambda what: False,
    pairs: Callable[[list], Iterable] = itertools.pairwise,
) -> int:
    """Every such mistake would be seen in the logits; how many were tried.

    Args:
        key: the output in which they are seen.
        unseen: whether a mistake is one that makes no difference, which is then asserted.
        most, pairs: see `swaps`.
    """
    right = ours(batch)[0][key]
    assert np.abs(right).max() > 0  # else all differences are NaN
    tried = 0
    for what, wrong in swaps(tensors, most, pairs=pairs):
        moved = difference(ours(batch, wrong)[0][key], right)
        assert moved <= TOLERANCE if unseen(what) else not moved <= 10 * TOLERANCE, what  # or NaN
        tried += 1
    return tried


def check_round_trip(ours: Ours) -> dict[str, np.ndarray]:
    """Ours -> their names -> ours has the same bits; the tensors under their names."""
    written = export(ours.leaves, ours.known.dialect)
    back = recognise(written, ours.config, 'exported').translation
    assert back.leaves.keys() == ours.leaves.keys() and not back.unknown
    for path, leaf in ours.leaves.items():
        assert leaf.dtype == back.leaves[path].dtype and np.array_equal(leaf, back.leaves[path]), path
    return written


def load_strictly(module: torch.nn.Module, tensors: dict[str, np.ndarray]) -> torch.nn.Module:
    """The original loads what we wrote: nothing missing but counts of batches and what it computes, nothing more."""
    blank = {name: torch.from_numpy(x.copy()) for name, x in tensors.items()}
    counts = {name: x for name, x in module.state_dict().items() if name.endswith('num_batches_tracked')}
    module.load_state_dict({**counts, **blank}, strict=True)
    return module.eval()
