"""Kernels against the portable version, on the device that is there; on a CPU in interpret mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.base import get_config
from polaris_jax.ops.attention import packed_attention
from polaris_jax.ops.cudnn import cudnn_attention
from polaris_jax.ops.paged_attention import Cache, paged_attention
from polaris_jax.ops.splash import splash_attention
from polaris_jax.optim.kernel import update_blocks
from polaris_jax.optim.optimizer import apply_gradients, init_opt_state, make_optimizer

Heads = tuple[int, int, int]  # query heads, kv heads, head width
PAGE, CHUNK, NEW = 64, 128, 4  # tokens: of a page, of a prefilled chunk, of one decoding call
DTYPES = {"gpu": ("bfloat16", "float16"), "tpu": ("bfloat16",)}


def names(platform: str) -> list[str]:
    """The kernels to compare on a platform: its own, or all in interpret mode on a CPU."""
    return [f"{owner}-{use}" for owner in DTYPES if platform in (owner, "cpu") for use in CASES]


def compare(name: str, heads: tuple[Heads, ...], tokens: int) -> tuple[bool, dict[str, Any]]:
    """Whether a kernel of `names` agrees with the portable version for each of `heads`, and how well.

    tokens: length of the rows. Reported is the largest error of any head's vector in the output, or in a gradient
    where it is trained through, relative to that vector or the mean one; beside it the error of the portable version
    in the same dtype. Both are taken against the portable version in float32. The kernel's may be as large as the
    portable version's, or four roundings.
    """
    owner, _, use = name.partition("-")
    emulated = jax.default_backend() == "cpu"
    kernel, portable, arguments = CASES[use](owner, emulated, tokens)
    holds, values = True, {}
    for dtype in DTYPES[owner][:1] if emulated else DTYPES[owner]:  # XLA's stand-in for cuDNN has no float16 on CPUs
        worst = worst_portable = 0.0
        for shape in heads:
            error, portable_error = errors(kernel, portable, arguments(shape, dtype))
            holds &= error <= max(portable_error, 4 * jnp.finfo(dtype).eps, 5e-5)  # false for nan, too
            worst, worst_portable = np.maximum((worst, worst_portable), (error, portable_error)).tolist()
        values |= {f"{dtype}_error": worst, f"{dtype}_portable_error": worst_portable}
    return bool(holds), values | {"head_shapes": len(heads), "interpreted": emulated}


def errors(kernel: Callable, portable: Callable, arguments: tuple) -> tuple[float, float]:
    """How far `kernel`, and `portable`, are from `portable` in float32. All return a tuple of arrays [..., d]."""
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(portable)(*(x.astype(jnp.float32) for x in arguments))
    return distance(jax.jit(kernel)(*arguments), expected), distance(jax.jit(portable)(*arguments), expected)


def distance(found: tuple, expected: tuple) -> float:
    """The largest relative error of any vector along the last axis."""
    worst = []
    for x, y in zip(found, expected, strict=True):
        x, y = (np.asarray(z, np.float32) for z in (x, y))
        size = np.linalg.norm(y, axis=-1)
        worst.append(np.max(np.linalg.norm(x - y, axis=-1) / np.maximum(size, np.sqrt(np.mean(size**2)))))
    return float(np.max(worst))  # nan where there is one, unlike `max`


def compare_update() -> tuple[bool, dict[str, Any]]:
    """Whether the kernel of int8 moments makes of a parameter what XLA makes of it, in its second update.

    update_error: the largest difference, relative to the learning rate. update_codes: the share of codes that differ,
    by one where a number is at the middle between two values.
    """
    settings = get_config().optimizer
    settings.moments, settings.learning_rate, settings.warmup_steps = "int8", 1.0, 0
    optimizer = make_optimizer(settings, 2)
    params, first, second = ({"kernel": x} for x in _normal("float32", *[(2, 512, 256)] * 3))
    params, state, _ = apply_gradients(optimizer, params, first, init_opt_state(optimizer, params, "float32"), True)
    kernel = partial(update_blocks, interpret=jax.default_backend() == "cpu")
    update = partial(jax.jit(apply_gradients, static_argnames=("optimizer", "in_kernel")), optimizer)
    expected, found = (update(params, second, state, True, in_kernel=way)[:2] for way in (None, kernel))
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    codes = [np.abs(np.asarray(x, int) - np.asarray(y, int)) for x, y in leaves if x.dtype == jnp.uint8]
    error = float(jnp.max(jnp.abs(found[0]["kernel"] - expected[0]["kernel"])))
    values = {"update_error": error, "update_codes": float(np.mean(np.minimum(codes, 1)))}
    return error < 1e-3 and values["update_codes"] < 1e-3 and bool(np.max(codes) <= 1), values


def _training(owner: str, emulated: bool, tokens: int) -> tuple[Callable, Callable, Callable]:
    """Output and gradients of whole rows: one sequence each and padding, and on TPUs two sequences in a row, too."""
    rows = [(tokens,), (tokens // 3,)] + [(tokens // 4, tokens // 2)] * (owner == "tpu")
    segments, positions = np.zeros((2, len(rows), tokens), np.int32)
    for row, lengths in enumerate(rows):
        filled = [np.arange(length) for length in lengths], [np.full(n, i + 1) for i, n in enumerate(lengths)]
        positions[row, : sum(lengths)], segments[row, : sum(lengths)] = map(np.concatenate, filled)
    real = jnp.asarray(segments != 0)[..., None, None]

    def with_gradients(attend):
        def value(q, k, v, weights):
            out = jnp.where(real, attend(q, k, v), 0)
            return jnp.sum(out.astype(jnp.float32) * weights), out

        def run(q, k, v, weights):
            (_, out), gradients = jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)(q, k, v, weights)
            return out, *gradients

        return run

    def kernel(q, k, v):
        if owner == "tpu":
            return splash_attention(q, k, v, (segments, segments), interpret=emulated)
        return cudnn_attention(q, k, v, segments, "xla" if emulated else "cudnn")

    def arguments(heads: Heads, dtype: str):
        H, K, d = heads
        return (*_normal(dtype, *((len(rows), tokens, n, d) for n in (H, K, K))), *_normal("float32", (1, 1, H, d)))

    portable = with_gradients(lambda q, k, v: packed_attention(q, k, v, positions, segments)[0])
    return with_gradients(kernel), portable, arguments


def _cached(owner: str, emulated: bool, lengths: tuple[int, ...], T: int, seen: np.ndarray):
    """T new tokens after `lengths` cached ones. seen: bool [1, T, new], see `paged_attention`."""
    options = {} if not emulated else {"implementation": "xla"} if owner == "gpu" and T > 1 else {"interpret": True}
    B, W, N = len(lengths), -(-max(lengths) // PAGE), seen.shape[2]
    table = 1 + np.random.default_rng(0).permutation(B * W).reshape(B, W).astype(np.int32)

    def attend(platform, q, keys, values, new_k, new_v, **options):
        cache = Cache((keys, values), table, jnp.asarray(lengths, jnp.int32))
        return (paged_attention(platform, q, cache, 1, (new_k, new_v), seen, **options),)

    def arguments(heads: Heads, dtype: str):
        H, K, d = heads
        pool = (2, 1 + B * W, PAGE, K, d)
        return _normal(dtype, (B, T, H, d), pool, pool, (B, N, K, d), (B, N, K, d))

    return partial(attend, owner, **options), partial(attend, "cpu"), arguments


def _prefill(owner: str, emulated: bool, tokens: int):
    """A chunk after none, one and many cached pages."""
    cached = (0, PAGE, tokens // PAGE * PAGE)
    return _cached(owner, emulated, cached, CHUNK, np.tri(CHUNK, dtype=bool)[None])


def _decode(owner: str, emulated: bool, tokens: int):
    """One token after an empty, a tiny, an odd and a long cache."""
    cached = (0, 1, tokens // 2 + 1, tokens)
    return _cached(owner, emulated, cached, 1, (np.arange(NEW) < NEW - 1)[None, None])


CASES = {"training": _training, "prefill": _prefill, "decode": _decode}


def _normal(dtype: str, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(len(shapes)), len(shapes))
    return tuple(jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True))
