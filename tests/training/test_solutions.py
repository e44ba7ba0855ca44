"""Solutions in checkpoints: only what is new is written, each checkpoint is whole, and damage loses little."""

import shutil
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polaris_jax import files
from polaris_jax.data.curriculum import Curriculum
from polaris_jax.rl.exploration import rollout_bytes
from polaris_jax.training import solutions
from polaris_jax.training.checkpoint import Checkpoints
from polaris_jax.training.host import HostState
from polaris_jax.types import Solution
from tests.training.test_checkpoint import flip, state_at, steps, truncate, warnings  # noqa: F401 (a fixture)
from tests.training.test_checkpoint import settings as kept
from tests.training.test_host import compact, make_rollout


def solution(name, seed, tokens=50):
    return compact(replace(make_rollout(name, 3, tokens, seed), problem_id=name))


def host_with(found):
    """A host state with these responses as its solutions."""
    return HostState(Curriculum(solutions={name: Solution(rollout, 1.0) for name, rollout in found.items()}))


def assert_equal(left, right):
    assert list(left) == list(right)
    for name, one in left.items():
        other = right[name]
        assert (one.problem_id, one.sample, one.finish_reason) == (name, other.sample, other.finish_reason)
        for field in ("prompt_tokens", "tokens", "logprobs"):
            assert getattr(one, field).tobytes() == getattr(other, field).tobytes()


def files_of(workdir, step):
    return {path.name: path for path in (workdir / "checkpoints" / str(step) / "solutions").glob("*")}


def written(workdir, step):
    """Bytes of the checkpoint's own file, which no other has."""
    path = files_of(workdir, step).get(f"{step}.npz")
    return path.stat().st_size if path else 0


def save_each(workdir, states, **changed):
    """Saves one of them at each step, from 1 on."""
    with Checkpoints(workdir, kept(**changed)) as checkpoints:
        for step, found in enumerate(states, 1):
            checkpoints.save(state_at(step), host_with(found))


def restore(workdir):
    with Checkpoints(workdir, kept()) as checkpoints:
        state, host = checkpoints.restore(state_at(0))
        return int(state.step), {name: solution.rollout for name, solution in host.curriculum.solutions.items()}


def growing(count, new):
    """Solutions of `count` saves, each with `new` more problems; the first of those before is solved anew in each."""
    found = {}
    for step in range(count):
        again = list(found)[:1]
        fresh = {f"{step}.{n}": solution(f"{step}.{n}", n) for n in range(new)}
        found = {k: r for k, r in found.items() if k not in again} | {k: solution(k, step) for k in again} | fresh
        yield found


def test_a_save_writes_what_is_new_and_links_the_rest(tmp_path):
    states = list(growing(6, 20))
    save_each(tmp_path, states, keep=2)
    assert steps(tmp_path) == [5, 6]
    new, all_ = 21 * rollout_bytes(states[0]["0.0"]), sum(map(rollout_bytes, states[-1].values()))
    assert new <= written(tmp_path, 6) < 1.5 * new + 2000 < all_
    assert files_of(tmp_path, 6)["2.npz"].samefile(files_of(tmp_path, 5)["2.npz"])
    assert_equal(restore(tmp_path)[1], states[-1])


def test_a_resumed_run_links_what_it_restored(tmp_path):
    states = list(growing(3, 5))
    save_each(tmp_path, states[:2])
    with Checkpoints(tmp_path, kept()) as checkpoints:
        _, host = checkpoints.restore(state_at(0))
        checkpoints.save(state_at(3), host)
    assert files_of(tmp_path, 3).keys() == {"1.npz", "2.npz"}
    assert_equal(restore(tmp_path)[1], states[1])


def test_a_file_that_is_mostly_out_of_date_is_left_behind(tmp_path):
    first = {name: solution(name, 1) for name in "abcd"}
    second = {"d": first["d"]} | {name: solution(name, 2) for name in "abc"}
    save_each(tmp_path, [first, second])
    assert files_of(tmp_path, 2).keys() == {"2.npz"}
    assert_equal(restore(tmp_path)[1], second)


def test_a_copied_checkpoint_is_whole_and_links_are_not_needed(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("no links here")

    monkeypatch.setattr(solutions.os, "link", refused)
    states = list(growing(3, 5))
    save_each(tmp_path / "run", states)
    shutil.copytree(tmp_path / "run" / "checkpoints" / "3", tmp_path / "copy" / "checkpoints" / "3")
    assert files.damage(tmp_path / "copy" / "checkpoints" / "3") == {}
    assert_equal(restore(tmp_path / "copy")[1], states[-1])


def test_what_a_failed_save_did_not_write_is_written_by_the_next(tmp_path, monkeypatch, warnings):  # noqa: F811
    states = list(growing(3, 5))
    with Checkpoints(tmp_path, kept()) as checkpoints:
        checkpoints.save(state_at(1), host_with(states[0]))
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_checksums", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
            checkpoints.save(state_at(2), host_with(states[1]))
            checkpoints.wait()
        assert len(warnings) == 1
        checkpoints.save(state_at(3), host_with(states[2]))
    assert_equal(restore(tmp_path)[1], states[2])


@pytest.mark.parametrize("harm", [truncate, flip])
def test_damage_to_a_checkpoints_own_file_leads_to_the_one_before(tmp_path, warnings, harm):  # noqa: F811
    states = list(growing(3, 5))
    save_each(tmp_path, states)
    harm(files_of(tmp_path, 3)["3.npz"])
    step, found = restore(tmp_path)
    assert step == 2
    assert_equal(found, states[1])
    assert "solutions/3.npz has" in warnings[0]
    assert "the checkpoint before it is used" in warnings[0]


def test_damage_to_a_shared_file_costs_its_solutions_and_no_step(tmp_path, warnings):  # noqa: F811
    states = list(growing(3, 5))
    save_each(tmp_path, states)
    flip(files_of(tmp_path, 3)["1.npz"])
    step, found = restore(tmp_path)
    assert step == 3
    assert found.keys() < states[2].keys()
    assert {name for name in states[2] if not name.startswith("0.")} <= found.keys()
    assert "solutions/1.npz has another checksum than when it was written; the run resumes without" in warnings[0]
    assert_equal(found, {name: states[2][name] for name in found})
    with Checkpoints(tmp_path, kept()) as checkpoints:
        _, host = checkpoints.restore(state_at(0))
        checkpoints.save(state_at(4), host)
    assert files.damage(tmp_path / "checkpoints" / "4") == {}


changes = st.lists(st.tuples(st.lists(st.sampled_from("abcdefgh"), unique=True), st.integers(0, 3)), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(changes)
def test_whatever_changes_and_is_dropped_comes_back_and_the_disk_holds_at_most_twice_that(tmp_path_factory, rounds):
    directory, found, before, source = tmp_path_factory.mktemp("run"), {}, {}, None
    for step, (new, dropped) in enumerate(rounds):
        found = {name: rollout for name, rollout in found.items() if name not in new}
        found |= {name: solution(name, step, tokens=1 + 9 * len(name * step)) for name in new}
        found = dict(list(found.items())[dropped:])
        planned = solutions.plan(found, before, f"{step}.npz")
        target = directory / str(step)
        target.mkdir()
        files.write_checksums(target, solutions.write(planned, source, target))
        assert files.damage(target) == {}
        assert sum(file.size for file in planned.files.values()) <= 2 * sum(map(rollout_bytes, found.values()))
        got, read = solutions.read(target, planned.index)
        assert_equal(got, found)
        assert {name: file.size for name, file in read.items()} == {n: f.size for n, f in planned.files.items()}
        before, source = planned.files, target
