"""Installs the compilers for TPUs and GPUs that are not there into VENV/compilers: of this Python's venv, for its JAX.

They lie apart, since JAX would complain at each start that their hardware is missing, and come without the libraries
that only the hardware needs.
"""

import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path


def wanted(requirements: list[str], jax: str) -> list[str]:
    """What of JAX's own requirements compiles: libtpu, and the plugin of the oldest CUDA that this JAX has."""
    libtpu = [one.split(";")[0] for one in requirements if one.startswith("libtpu")]
    cuda = min(int(number) for one in requirements for number in re.findall(r"^jax-cuda(\d+)-plugin", one))
    return [*dict.fromkeys(libtpu), f"jax-cuda{cuda}-plugin=={jax}", f"jax-cuda{cuda}-pjrt=={jax}"]


if __name__ == "__main__":
    target = Path(sys.prefix) / "compilers"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(target)]
    subprocess.run([*pip, *wanted(requires("jax"), version("jax"))], check=True)
    (target / "installed").touch()
