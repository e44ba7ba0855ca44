"""Text is data, and secrets stay secret."""

import ast
from pathlib import Path

import pytest

from configs import base
from polaris_jax import config as configs
from polaris_jax.errors import UserError, redact

ROOT = Path(base.__file__).parents[1]
SOURCES = sorted(path for room in ("polaris_jax", "experiments", "configs") for path in (ROOT / room).rglob("*.py"))
NEVER_IMPORTED = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "tarfile",
    "zipfile",
}
NEVER_CALLED = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput", "torch.load"}
NEVER_CALLED |= {"pd.read_pickle", "pandas.read_pickle", "shutil.unpack_archive", "yaml.load", "yaml.unsafe_load"}
NEVER_SET = {"shell", "trust_remote_code", "allow_pickle", "weights_only"}  # to anything but a safe constant
SAFE = {"weights_only": True}


def faults(tree):
    """What a module does that it must not: `line: what`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in NEVER_IMPORTED)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.removeprefix("builtins.") in NEVER_CALLED:
                yield f"{node.lineno}: calls {name}"
            for keyword in node.keywords:
                safe = isinstance(keyword.value, ast.Constant) and keyword.value.value is SAFE.get(keyword.arg, False)
                if keyword.arg in NEVER_SET and not safe:
                    yield f"{node.lineno}: sets {keyword.arg}"
            if name in ("np.load", "numpy.load") and "allow_pickle" not in [keyword.arg for keyword in node.keywords]:
                yield f"{node.lineno}: calls {name} without allow_pickle=False"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from yaml import load",
        "eval(x)",
        "builtins.exec(x)",
        "subprocess.run(x, shell=True)",
        "f(trust_remote_code=flag)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
    ],
)
def test_the_scan_finds(code):
    assert list(faults(ast.parse(code)))


def test_nothing_is_unpickled_evaluated_or_given_to_a_shell():
    assert len(SOURCES) > 80
    found = [f"{path}:{fault}" for path in SOURCES for fault in faults(ast.parse(path.read_text()))]
    assert found == []


SECRETS = {
    "token": "hf_" + "aB3" * 12,
    "password": "https://me:pass-word@host/data",
    "query": "https://host/data?access_token=pass-word&x=1",
    "environment": "a-token-of-another-kind",
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_secrets_are_neither_said_nor_written(secret, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRETS["environment"])
    error = str(UserError(f"{secret}: cannot be read"))
    assert secret not in error
    assert "pass-word" not in error
    assert error.endswith(": cannot be read")
    for key, value in (("model.path", secret), ("evaluation.benchmarks", (secret,))):
        with pytest.raises(UserError, match=f"config.{key}: holds a secret; set HF_TOKEN"):
            configs.override(base.get_config(), {key: value})


@pytest.mark.parametrize("text", ["runs/hf_roundtrip", "hf://owner/name", "tokens=3 a@b", "s3://bucket/a@b"])
def test_what_is_no_secret_stays(text, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert redact(text) == text
