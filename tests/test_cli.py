"""A user's mistake is one line and exit code 2, whatever the script."""

import errno
import sys

import pytest
from absl import app, flags
from ml_collections import config_flags

from polaris_jax import cli
from polaris_jax.errors import NonFiniteUpdates, UserError


@pytest.fixture
def start(monkeypatch, tmp_path, capsys):
    """start(main, *args) -> (exit code, stdout, stderr) of a script with flags --config and --name, run in-process."""
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict(dict(rollout=dict(samples=8)))\n"
    )
    monkeypatch.chdir(tmp_path)
    flags.FLAGS.mark_as_parsed()  # absl's own flags are looked up there
    values = flags.FlagValues()
    for flag in ("verbosity", "only_check_args", "run_with_pdb", "run_with_profiling", "profile_file"):
        values[flag] = flags.FLAGS[flag]
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(app, "FLAGS", values)

    def run(main, *args):
        monkeypatch.setattr(sys, "argv", ["script", *args])
        config_flags.DEFINE_config_file("config", flag_values=values)
        flags.DEFINE_string("name", None, "a name", flag_values=values, required=True)
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda argv: main(values))
        return (stop.value.code or 0, *capsys.readouterr())

    return run


def test_good_flags(start):
    code, out, err = start(lambda f: print(f.config.rollout.samples, f.name), "--config=config.py", "--name=a",
                           "--config.rollout.samples=16")  # fmt: skip
    assert (code, out, err) == (0, "16 a\n", "")


def test_user_error_is_one_line(start):
    def main(values):
        raise UserError("x.jsonl line 3:\n  no answer")

    assert start(main, "--name=a") == (2, "", "error: x.jsonl line 3: no answer\n")


def test_a_full_disk_is_one_line(start):
    def main(values):
        raise OSError(errno.ENOSPC, "No space left on device", "scores.json")

    assert start(main, "--name=a") == (2, "", "error: [Errno 28] No space left on device: 'scores.json'\n")


def test_updates_that_are_not_finite_have_their_own_code(start):
    def main(values):
        raise NonFiniteUpdates("10 updates in a row")

    assert start(main, "--name=a") == (3, "", "error: 10 updates in a row\n")


def test_other_errors_keep_their_traceback(start):
    with pytest.raises(ZeroDivisionError):
        start(lambda values: 1 / 0, "--name=a")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--nmae=a"], "Unknown command line flag 'nmae'. Did you mean: name ?"),
        (["--config=config.py", "--config.rollout.smaples=3"], "no such key: 'smaples' Did you mean \"samples\""),
        (["--config=config.py", "--config.rollout.samples=three"], "config.rollout.samples=three: "),
        (["--config=config.py", "--config.rollout.samples=three"], "samples=three: expected int, such as 8"),
        (["--config=confg.py"], "--config=confg.py: no such config file; did you mean config.py?"),
        (["--config", "confg.py"], "--config=confg.py: no such config file; did you mean config.py?"),
        (["--config=config.py", "--rollout.samples=3"], "is set by --config.rollout.samples=VALUE"),
        ([], "--name: missing (a name); --help shows typical command lines"),
        (["--name=a", "b"], "unexpected argument 'b'; flags are written --name=value"),
    ],
)
def test_bad_flags_are_one_line(start, args, message):
    code, out, err = start(lambda values: print("ran"), *args)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "\\n" not in err
