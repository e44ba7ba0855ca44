"""Files are there whole or not at all, damage is found, and what grows loses no more than its unfinished last line."""

import json
import stat
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polaris_jax import files
from polaris_jax.errors import UserError
from polaris_jax.files import Journal, new_directory, open_steps, read_steps, staged, write_json, write_whole


@dataclass(frozen=True)
class Note:
    name: str
    count: int | None


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, before):
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)

    def fail():
        with staged(path) as staging:
            staging.write_text("half")
            assert path.exists() == (before is not None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == [before] * (before is not None)
    with staged(path) as staging:
        assert (staging.parent, staging.suffix) == (path.parent, path.suffix)
        staging.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "new")]


def test_texts_bytes_and_values_are_read_back(tmp_path):
    write_whole(tmp_path / "t", "½\n")
    write_whole(str(tmp_path / "b"), b"\0\xff")
    write_json(tmp_path / "j", {"a": [1, None, "½"]})
    assert (tmp_path / "t").read_text("utf-8") == "½\n"
    assert (tmp_path / "b").read_bytes() == b"\0\xff"
    assert json.loads((tmp_path / "j").read_text("utf-8")) == {"a": [1, None, "½"]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "j", {"a": object()})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "j", "t"]


def test_a_directory_is_written_whole_or_not_at_all(tmp_path):

    def fail():
        with new_directory(tmp_path / "d") as staging:
            (staging / "a").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    for text in ("one", "two"):
        with new_directory(tmp_path / "d", overwrite=True) as staging:
            (staging / "a").write_text(text)
        assert (tmp_path / "d" / "a").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o755
    with pytest.raises(UserError, match="d: exists already"), new_directory(tmp_path / "d"):
        pass


contents = st.dictionaries(st.sampled_from(["a/x", "a/b/y", "c/z"]), st.binary(min_size=1, max_size=20), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(contents, st.data())
def test_any_changed_byte_is_found_and_named(tmp_path_factory, written, data):
    directory = tmp_path_factory.mktemp("d")
    for name, content in written.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    assert files.damage(directory) == {files.CHECKSUMS: "checksums.json is missing or broken"}
    assert files.write_checksums(directory) == sum(map(len, written.values()))
    assert files.damage(directory) == {}
    name = data.draw(st.sampled_from(sorted(written)))
    place = data.draw(st.integers(0, len(written[name]) - 1))
    content = bytearray(written[name])
    content[place] ^= data.draw(st.integers(1, 255))
    (directory / name).write_bytes(content)
    assert files.damage(directory) == {name: f"{name} has another checksum than when it was written"}
    (directory / name).write_bytes(written[name][:place])
    assert files.damage(directory) == {name: f"{name} has {place} bytes, expected {len(content)}"}
    (directory / name).unlink()
    assert files.damage(directory) == {name: f"{name} is missing"}


def test_lines_up_to_a_step_stay_whatever_follows_them(tmp_path):
    path, rows = tmp_path / "m.jsonl", [{"step": step, "text": "½ \ud800 \u2028"} for step in (1, 2, 3)]
    assert read_steps(path) == ([], 0)
    found, lines = open_steps(path, 0)
    assert found == []
    for row in rows:
        lines.add(row)
    lines.sync()
    lines.close()
    whole = path.read_bytes()
    two = len(whole.splitlines(keepends=True)[0]) + len(whole.splitlines(keepends=True)[1])
    for size in range(two, len(whole) + 1):
        path.write_bytes(whole[:size])
        assert read_steps(path)[0] == rows[: 2 + (size == len(whole))]
        found, lines = open_steps(path, 2)
        lines.close()
        assert (found, path.read_bytes()) == (rows[:2], whole[:two])


def test_a_process_that_does_not_write_leaves_the_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    monkeypatch.setattr("jax.process_index", lambda: 1)
    rows, lines = open_steps(path, 1)
    lines.add({"step": 2})
    lines.sync()
    lines.close()
    assert rows == [{"step": 1}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


names = st.text('a½\ud800\u2028\n"', max_size=5)  # lone surrogates, too, as a dataset's JSON may hold them
notes = st.builds(Note, names, st.none() | st.integers())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(notes, max_size=3), st.lists(notes, max_size=3), st.binary(max_size=9))
def test_a_journal_gives_back_its_records_without_the_unfinished_line(tmp_path_factory, first, second, half):
    path = tmp_path_factory.mktemp("d") / "deep" / "j.jsonl"
    for before, new in ([], first), (first, second), ([*first, *second], []):
        with Journal(path, {"seed": (1, 2)}, Note) as journal:
            assert journal.records == before
            for note in new:
                journal.write(note)
        if path.exists():
            with path.open("ab") as file:
                file.write(half.replace(b"\n", b""))
    assert path.exists() == bool(first or second)


def test_a_journal_of_other_settings_is_refused(tmp_path):
    with Journal(tmp_path / "r.jsonl", {"model": "a", "samples": 4}, Note) as journal:
        assert not (tmp_path / "r.jsonl").exists()  # nothing to keep yet
        journal.write(Note("p", 0))
    with pytest.raises(UserError, match=r"r\.jsonl: holds an evaluation with samples 4, this one has 8"):
        Journal(tmp_path / "r.jsonl", {"model": "a", "samples": 8}, Note)


def test_a_broken_journal_names_the_line(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n{broken}\n')
    with pytest.raises(UserError, match=r"r\.jsonl line 2: not JSON"):
        Journal(tmp_path / "r.jsonl", {"a": 1}, Note)
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(UserError, match=r"r\.jsonl line 2: not a record"):
        Journal(tmp_path / "r.jsonl", {"a": 1}, Note)
