"""Weights for pictures of another size or number of channels: position embeddings and first convolutions.

Legend: P tokens in front of the patches, h and w rows and columns of patches, D width, C channels.
"""

import math

import numpy as np

from jtl.errors import UserError

Grid = tuple[int, int]


def position(
    embedding: np.ndarray,
    old_prefix: int,
    new_prefix: int,
    old_grid: Grid | None,
    new_grid: Grid,
    antialias: bool = True,
    fresh: np.ndarray | None = None,
) -> np.ndarray:
    """A position embedding for another grid of patches: [1, P + h·w, D] -> [1, P' + h'·w', D], bicubic.

    The same grid keeps its bits. Computed in float64, returned in the embedding's dtype.

    Args:
        old_prefix, new_prefix: P and P'. Fewer drops the last ones (the distillation token's goes before the class
            token's), more takes the last ones of `fresh`.
        old_grid: (h, w); None for a square.
        antialias: as timm does it; without, as Hugging Face's `interpolate_pos_encoding`.
        fresh: [1, P', D], what the model has there now.

    Raises:
        UserError: the rows of the embedding are not those of `old_grid`, or `fresh` is needed and absent.
    """
    rows = embedding.shape[1] - old_prefix if embedding.ndim == 3 else 0
    old_grid = old_grid or (math.isqrt(max(rows, 0)),) * 2
    if rows < 1 or len(embedding) != 1 or math.prod(old_grid) != rows or min(new_grid) < 1:
        raise UserError(
            f'a position embedding of shape {embedding.shape} is not [1, {old_prefix} + {old_grid[0]}·{old_grid[1]}, D]'
            f' to make [1, {new_prefix} + {new_grid[0]}·{new_grid[1]}, D]: give the grid that its patches have.'
        )
    prefix = embedding[:, : min(old_prefix, new_prefix)]  # [1, P, D]
    if new_prefix > old_prefix:
        if fresh is None or fresh.shape != (1, new_prefix, embedding.shape[-1]):
            raise UserError(
                f'position embedding: {new_prefix} tokens in front of the patches, {old_prefix} given, and no values '
                f'of shape {(1, new_prefix, embedding.shape[-1])} for the others.'
            )
        prefix = np.concatenate([prefix, fresh[:, old_prefix:].astype(prefix.dtype)], axis=1)  # [1, P', D]
    patches = embedding[:, old_prefix:]  # [1, h·w, D]
    if tuple(new_grid) != tuple(old_grid):
        vertical, horizontal = (bicubic(old, new, antialias) for old, new in zip(old_grid, new_grid))
        grid = patches.reshape(*old_grid, -1).astype(np.float64)  # [h, w, D]
        grid = np.tensordot(vertical, grid, 1)  # [h', w, D]
        grid = np.tensordot(horizontal, grid, (1, 1)).swapaxes(0, 1)  # [h', w', D]
        patches = grid.reshape(1, -1, grid.shape[-1]).astype(embedding.dtype)  # [1, h'·w', D]
    return np.concatenate([prefix, patches], axis=1)


def bicubic(old: int, new: int, antialias: bool) -> np.ndarray:
    """The matrix [new, old] of cubic interpolation along an axis, pixels centred on halves; its rows sum to 1.

    Without antialiasing each value is of 4 neighbours, a = -3/4, and what lies outside is as the edge. With it the
    kernel is as wide as the step when shrinking, a = -1/2, and is cut at the edge: PIL's way. Both are PyTorch's
    `interpolate(mode='bicubic', align_corners=False)`. Keys, "Cubic convolution interpolation for digital image
    processing", IEEE Trans. ASSP 1981.
    """
    step = old / new
    centre = (np.arange(new) + 0.5) * step  # [new], of the pixels' edges
    if antialias:
        width = max(step, 1.0)
        distance = (np.arange(old) + 0.5 - centre[:, None]) / width  # [new, old]
        matrix = cubic(distance, -0.5)
        return matrix / matrix.sum(1, keepdims=True)
    taps = np.floor(centre - 0.5).astype(int)[:, None] + np.arange(-1, 3)  # [new, 4]
    weights = cubic(taps + 0.5 - centre[:, None], -0.75)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weights)
    return matrix


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel: 1 at 0, 0 at the other whole numbers and from 2 on."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((x - 5) * x + 8) * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def first_convolution(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution for another number of channels: [h, w, C, D] -> [h, w, C', D].

    To 1 channel: the sum over the old ones. To others: the old ones over and over, times C / C'. Either way a picture
    whose channels are all the same gets the response that it had in C equal channels (exactly so if C' is 1 or a
    multiple of C). What a channel meant is lost, the scale of the response is not. timm does the same.

    Raises:
        UserError: not a kernel, or no channels.
    """
    if kernel.ndim != 4 or channels < 1:
        raise UserError(f'a first convolution is [h, w, C, D], not {kernel.shape}, and takes 1 channel or more.')
    old = kernel.shape[2]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(2, keepdims=True, dtype=np.float64).astype(kernel.dtype)
    repeated = kernel[:, :, np.arange(channels) % old].astype(np.float64)  # [h, w, C', D]
    return (repeated * (old / channels)).astype(kernel.dtype)
