"""How processes find each other and agree."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from polaris_jax.sharding import multihost

ROOT = Path(__file__).parents[2]
SETTINGS = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def test_two_processes_that_slurm_names_agree():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "JAX_COORDINATOR_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, Path(__file__).with_name("agree.py")],
            env=os.environ | SETTINGS | slurm | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        found, errors = process.communicate(timeout=120)
        assert (found[-7:], process.returncode) == ("agreed\n", 0), errors[-3000:]


def test_one_process_agrees_with_itself():
    multihost.start(num_processes=1)
    multihost.wait_for_all()
    flag = multihost.SharedFlag()
    assert not flag.is_set()
    flag.set()
    assert flag.is_set()
    assert multihost.any_process(True)
    assert not multihost.any_process(False)
    assert multihost.gather({"a": 1}) == [{"a": 1}]
    assert multihost.share([1, 2, 3]) == [1, 2, 3]


def test_flags_that_say_too_little_are_refused():
    command = [sys.executable, "experiments/train.py", "--num_processes=2", "--config=configs/tiny.py", "--workdir=un"]
    ended = subprocess.run(command, env=os.environ | SETTINGS, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --coordinator, --num_processes, --process_id:")
    assert not (ROOT / "un").exists()
