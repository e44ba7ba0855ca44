"""The update of a parameter whose moments are int8 blocks, as one Pallas kernel for GPUs.

A block's scale is known only when all of its new moments are. XLA stores them until then; here they wait in registers,
and each byte of gradient, parameter and moments is read once and written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh

from polaris_jax.optim.moments import Blocks, block_axis

TILE = 2**12  # values of one program at most: as many as the registers of 256 threads hold without spilling
WIDTH = 16  # of them lie side by side at least: 16 bytes of codes are one read
LEAST = 2**16  # values of a parameter; smaller ones are left to XLA, which takes many together


class Tiles(NamedTuple):
    """An array is seen as [count, block, width], a block's values along the second axis.

    rows, columns: of one program's part, along the first and the last.
    """

    count: int
    block: int
    width: int
    rows: int
    columns: int


def tiles(moment: Blocks) -> Tiles:
    """How a parameter with this moment is cut."""
    shape = moment.codes.shape
    axis = block_axis(len(shape))
    block, width = shape[axis] // moment.scales.shape[axis], math.prod(shape[axis + 1 :])
    count, columns = moment.codes.size // block // width, min(WIDTH, width & -width)
    return Tiles(count, block, width, min(TILE // block // columns, count & -count), columns)


def suits(moment: Any) -> bool:
    """Whether `update_blocks` takes a parameter with this moment."""
    if not isinstance(moment, Blocks) or not LEAST <= moment.codes.size < 2**31:  # a kernel counts in 32 bits
        return False
    cut = tiles(moment)
    return cut.columns * (cut.block if cut.width == 1 else 1) >= WIDTH


def update_blocks(
    change: Callable, grad: Any, kept: Any, scalars: Any, *, mesh: Mesh | None = None, interpret: bool = False
) -> Any:
    """`change(grad, kept, scalars)`, the new `kept`, which is written where it lay.

    grad, kept: trees of the arrays of one parameter, in kept its moments' `Blocks`, of which `suits`. scalars: a tree
    of arrays of one number. change: elementwise, but for what is largest in each block; it sees [rows, block, columns].
    mesh: of the device that it is compiled for, where that may be another than those that are there.
    """
    arrays, structure = jax.tree.flatten((grad, kept))
    numbers, scalar_structure = jax.tree.flatten(scalars)
    moment = next(x for x in jax.tree.leaves(kept, is_leaf=lambda x: isinstance(x, Blocks)) if isinstance(x, Blocks))
    cut, shape, replaced = tiles(moment), moment.codes.shape, len(jax.tree.leaves(grad))
    views = [x.reshape(cut.count, cut.block if x.shape == shape else 1, cut.width) for x in arrays]
    across = cut.width // cut.columns  # programs side by side, which run at the same time
    place = lambda i: (i // across, 0, i % across)  # noqa: E731
    specs = [pl.BlockSpec((cut.rows, x.shape[1], cut.columns), place) for x in views]

    def kernel(*refs):
        found = structure.unflatten(ref[...] for ref in refs[: len(views)])
        told = scalar_structure.unflatten(ref[0] for ref in refs[len(views) :][: len(numbers)])
        new = jax.tree.leaves(change(*found, told))
        for ref, x in zip(refs[len(views) + len(numbers) :], new, strict=True):
            ref[...] = x

    run = pl.pallas_call(
        kernel,
        grid=(cut.count // cut.rows * across,),
        in_specs=[*specs, *(pl.BlockSpec((1,), lambda i: (0,)) for _ in numbers)],
        out_specs=specs[replaced:],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in views[replaced:]],
        input_output_aliases={replaced + i: i for i in range(len(views) - replaced)},
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
        name="update_blocks",
    )
    with nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        new = run(*views, *(x.reshape(1) for x in numbers))
    whole = [x.reshape(y.shape) for x, y in zip(new, arrays[replaced:], strict=True)]
    return jax.tree.unflatten(jax.tree.structure(kept), whole)
