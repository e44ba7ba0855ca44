"""An update of the parameters piece by piece, so that what is computed on the way is never as large as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from polaris_jax.optim.kernel import suits
from polaris_jax.optim.moments import Blocks


class Told(NamedTuple):
    """What is known of all gradients before a parameter is updated.

    norm: float32. learn: bool, whether to update at all. loss_scale: float32, what gradients are multiplied with.
    """

    norm: jax.Array
    learn: jax.Array
    loss_scale: jax.Array


def piecewise(
    change: Callable,
    params: Mapping,
    grads: Mapping,
    state: Any,
    told: Told,
    most: float,
    in_kernel: Callable | None = None,
) -> tuple[Any, Any]:
    """`change(params, grads, state, told, piece) -> (params, state)`, of which nothing is taken unless `told.learn`.

    An array of params with more than `most` bytes is cut along its first axis, and its pieces are changed one after the
    other, each written where it lay, with temporaries for one. The others are changed together. So what becomes of an
    array must depend neither on other arrays nor on what else lies along its first axis. Of the state, trees like
    params are cut as they are; its other arrays must become the same with every piece. piece: int32, another in each
    call. in_kernel: `kernel.update_blocks`, which changes the arrays that suit it.
    """
    kept = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Blocks))
    if _are_small(params, most) and not (in_kernel and any(map(suits, kept))):
        return change(params, grads, state, told, 0)
    is_tree = lambda x: isinstance(x, dict) and x.keys() == params.keys()  # noqa: E731
    leaves, structure = jax.tree.flatten(state, is_leaf=is_tree)
    places = [i for i, x in enumerate(leaves) if is_tree(x)]

    def one(grads, trees, others, told, piece):
        found, rest = iter(trees[1:]), iter(others)
        whole = structure.unflatten(next(found if i in places else rest) for i in range(len(leaves)))
        params, state = change(trees[0], grads, whole, told, piece)
        found = structure.flatten_up_to(state)
        return [params, *(found[i] for i in places)], [x for i, x in enumerate(found) if i not in places]

    flat_grads, flat = flatten_dict(grads), [flatten_dict(tree) for tree in (params, *(leaves[i] for i in places))]
    counts, new = {path: piece_count(x, most) for path, x in flat[0].items()}, [dict(tree) for tree in flat]
    by_kernel = [path for path in counts if in_kernel and any(suits(tree[path]) for tree in flat[1:])]
    by_piece = [path for path in counts if counts[path] > 1 and path not in by_kernel]
    together = [path for path in counts if path not in by_kernel + by_piece]
    given, piece = [x for x in leaves if not is_tree(x)], 0

    def of(paths):
        cut = lambda tree: unflatten_dict({path: tree[path] for path in paths})  # noqa: E731
        return cut(flat_grads), [cut(tree) for tree in flat]

    def put(trees):
        for whole, tree in zip(new, trees, strict=True):
            whole.update(flatten_dict(tree))

    for paths, count in (together, 1), *(([path], counts[path]) for path in by_piece):
        trees, others = _in_loop(one, *of(paths), given, told, count, piece)
        put(trees)
        piece += count
    for path in by_kernel:
        block = lambda grads, trees, known: one(grads, trees, *known)[0]  # noqa: E731
        put(in_kernel(block, *of([path]), (given, told, jnp.int32(piece))))
        piece += 1
    params, *trees = map(unflatten_dict, new)
    trees, others = iter(trees), iter(others)
    return params, structure.unflatten(next(trees if i in places else others) for i in range(len(leaves)))


def sum_in_pieces(number: Callable, tree: Mapping, most: float) -> jax.Array:
    """`number(tree)`, a float32 sum over its arrays, of which those of more than `most` bytes are taken in pieces."""
    if _are_small(tree, most):
        return number(tree)
    flat = flatten_dict(tree)
    counts = {path: piece_count(x, most) for path, x in flat.items()}
    total = number({path: x for path, x in flat.items() if counts[path] == 1})
    for path, x in flat.items():
        if counts[path] > 1:
            add = lambda i, total, x=x, n=counts[path]: total + number(_piece(x, i, n))  # noqa: E731
            total += jax.lax.fori_loop(0, counts[path], add, jnp.float32(0))
    return total


def _are_small(tree: Any, most: float) -> bool:
    return all(piece_count(x, most) == 1 for x in jax.tree.leaves(tree))


def piece_count(x: jax.Array, most: float) -> int:
    """Into how many parts the first axis is cut: as few as have at most so many bytes each, where there are such."""
    size, length = x.size * x.dtype.itemsize, x.shape[0] if x.ndim else 1
    return next((n for n in range(1, length) if length % n == 0 and size <= n * most), length)


def _in_loop(one: Callable, grads: Any, trees: Any, given: Any, told: Told, count: int, first: int) -> Any:
    if count == 1:
        return one(grads, trees, given, told, first)

    def step(i, found):
        trees, others = found
        here = jax.tree.map(lambda x: _piece(x, i, count), (grads, trees))
        # Besides what it says, the branch keeps XLA from fusing slices with what is computed of them: it would copy the
        # whole arrays before it writes to them.
        change = lambda grads, trees: one(grads, trees, given, told, first + i)  # noqa: E731
        new, others = jax.lax.cond(told.learn, change, lambda _, trees: (trees, others), *here)
        trees = jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, i * len(y), 0), trees, new)
        return trees, others

    return jax.lax.fori_loop(0, count, step, (trees, given))


def _piece(x: jax.Array, i: jax.Array, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, i * (len(x) // count), len(x) // count)
