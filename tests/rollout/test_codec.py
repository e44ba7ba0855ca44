"""Rollouts come back from their arrays to the bit, with the records that they have and no others."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from polaris_jax.rollout.codec import from_bytes, rollouts_from_arrays, rollouts_to_arrays, to_bytes
from polaris_jax.rollout.records import DetailedRollout
from polaris_jax.types import Rollout


@st.composite
def rollouts(draw):
    """Any bits in any array, also those of NaNs; no tokens at all, too."""
    prompt, tokens = draw(st.integers(0, 4)), draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 999)))

    def bits(dtype, *shape):
        return rng.integers(0, 2**32, shape, np.uint32).view(dtype)

    head = {"problem_id": draw(st.text("a½\ud800\n", max_size=4)), "sample": draw(st.integers(0, 9))}
    head["finish_reason"] = draw(st.sampled_from(["stop", "length"]))
    arrays = {"prompt_tokens": bits(np.int32, prompt), "tokens": bits(np.int32, tokens)}
    arrays["logprobs"] = bits(np.float32, tokens)
    scored = draw(st.booleans())
    if scored and (untempered := draw(st.booleans())):
        arrays["untempered_logprobs"] = bits(np.float32, tokens)
    if scored and (not untempered or draw(st.booleans())):
        arrays |= {"alternative_ids": bits(np.int32, tokens, 3), "alternative_logprobs": bits(np.float32, tokens, 3)}
    return (DetailedRollout if scored else Rollout)(**head, **arrays)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is type(other)
        for name, value in vars(other).items():
            again = getattr(one, name)
            if isinstance(value, np.ndarray):
                assert (again.dtype, again.shape, again.tobytes()) == (value.dtype, value.shape, value.tobytes())
            else:
                assert again == value


@settings(max_examples=60)
@given(st.lists(rollouts(), max_size=4))
def test_rollouts_survive_arrays_and_bytes(given_):
    arrays = rollouts_to_arrays(given_)
    assert all(array.ndim == 1 and array.size for array in arrays.values())
    assert_same(rollouts_from_arrays(arrays), given_)
    assert_same(from_bytes(to_bytes(given_)), given_)


def test_the_number_of_arrays_does_not_grow_with_the_rollouts():
    one = Rollout("a", 0, np.arange(3, dtype=np.int32), np.arange(4, dtype=np.int32), np.zeros(4, np.float32), "stop")
    assert rollouts_to_arrays([one] * 100).keys() == rollouts_to_arrays([one]).keys()


def test_a_rollout_that_is_kept_does_not_keep_its_neighbours_in_memory():
    one = Rollout("a", 0, np.arange(3, dtype=np.int32), np.arange(4, dtype=np.int32), np.zeros(4, np.float32), "stop")
    for found in rollouts_from_arrays(rollouts_to_arrays([one] * 100)):
        assert found.tokens.base is None or found.tokens.base.size == found.tokens.size
