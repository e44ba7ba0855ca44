"""The campaign of kills, corruption and full disks on the tiny recipe: `make chaos`, or for some faults of it

    python experiments/chaos.py --workdir=runs/chaos --kinds=kill,sigterm --kills=20 --seed=0

One recipe runs unbroken. Others are hit at seeded instants and started again until they are done; what they leave must
be what the unbroken one left: parameters, metrics but for clocks, samples, verdicts and scores.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from absl import flags
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from polaris_jax import cli, sampler
from polaris_jax import config as configs
from polaris_jax.errors import PREEMPTED
from polaris_jax.evaluation import difficulty, job
from polaris_jax.rewards import VerifierPool
from polaris_jax.runs.compilation import enable_compilation_cache
from polaris_jax.supervision.preemption import preemptible
from polaris_jax.training import checkpoint, loop, metrics, recipe, sft, step

WORKDIR = flags.DEFINE_string("workdir", "runs/chaos", "Where the runs go; emptied first.")
KINDS = flags.DEFINE_list("kinds", ["kill", "sigterm", "workers", "damage", "full"], "Which faults.")
KILLS = flags.DEFINE_integer("kills", 20, "Instants of kill -9; a fifth as many of SIGTERM.")
SEED = flags.DEFINE_integer("seed", 0, "Of the instants.")
VICTIM = flags.DEFINE_string("victim", "", "Used by the campaign: the recipe in this directory, hit by --fault.")
FAULT = flags.DEFINE_string("fault", "", "POINT:CALL:SECONDS:SIGNAL, or `workers`: kills and stops verifier workers.")

SETTINGS = {
    "rollout.prompts": 4,
    "rollout.samples": 4,
    "rollout.max_response_tokens": 24,
    "rollout.slots": 8,
    "rollout.tokens_per_call": 4,
    "optimizer.learning_rate": 1e-2,
    "updates.rows": 8,
    "sft.steps": 6,
    "sft.checkpoint_every": 2,
    "sft.batch_size": 8,
    "difficulty.problems": 16,
    "difficulty.samples": 2,
    "difficulty.keep": ((0.0, 1.0),),
    "training.steps": 6,
    "training.checkpoint_every": 2,
    "training.evaluate_every": 3,
    "training.log_samples": 4,
    "evaluation.max_problems": 4,
    "evaluation.samples": 2,
    "evaluation.max_response_tokens": 24,
}
POINTS = {  # function whose call starts the fault's clock; at most which call after a start; longest delay, seconds
    "SFT": (sft, "pack", 3, 0.3),
    "difficulty": (difficulty, "pass_rates", 1, 0.5),
    "rollouts": (step, "sample_batch", 2, 0.4),
    "verifying": (sampler, "response_text", 24, 0.05),
    "update": (step, "pack", 2, 0.3),
    "save": (checkpoint.Checkpoints, "save", 2, 0.2),
    "metrics": (metrics.MetricsLogger, "write", 2, 0.02),
    "evaluation": (loop, "evaluation_metrics", 1, 0.4),
    "scores": (job, "evaluate_all", 1, 0.3),
    "export": (recipe, "export", 1, 0.2),
}
PASSED = {"sft": 1, "difficulty": 2, "train": 8, "evaluation": 9}  # points that are over with a phase of the recipe
TRIES = 6  # starts in which a fault may come too late before it counts as one that cannot be injected
CLOCKS = ("_s", "seconds", "compilations", "peak_share", "device_hours")


class Result(NamedTuple):
    """injected, survived: faults. lost: steps that had been logged and were done again. differences: see `compare`."""

    fault: str
    injected: int
    survived: int
    lost: int
    differences: list[str]


class Graded(VerifierPool):
    """Real workers, but a response of even length is right: a random model must earn something."""

    def submit(self, response, answer):
        """Judges the parity, as a fraction, so that it takes a worker."""
        return super().submit(f"</think>\\boxed{{\\frac{{{len(response) % 2}}}{{7}}}}", "0")


def main(_: list[str]) -> int | None:
    """Runs the campaign, or one victim of it."""
    if VICTIM.value:
        return victim(Path(VICTIM.value), FAULT.value)
    workdir, rng = Path(WORKDIR.value).absolute(), random.Random(SEED.value)
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    began = time.perf_counter()
    start(workdir / "unbroken")
    expected = fruits(workdir / "unbroken")
    results = []
    for kind in KINDS.value:
        results += CAMPAIGNS[kind](workdir, expected, rng)
    table = Table("fault", "injected", "survived", "steps lost", "differences")
    for result in results:
        table.add_row(*map(str, result[:4]), ", ".join(result.differences) or "0")
    console = Console()
    console.print(table)
    console.print(f"{time.perf_counter() - began:.0f} s; runs in {workdir}")
    return int(any(result.differences or result.survived < result.injected for result in results))


def start(run: Path, fault: str = "", **settings) -> int:
    """A process of the recipe in `run`; its exit code. Its output is added to RUN.log."""
    command = [sys.executable, __file__, f"--victim={run}", f"--fault={fault}", "--compilation_cache="]
    with run.with_suffix(".log").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=log, **settings).returncode
    if not fault and code:
        raise RuntimeError(f"the recipe failed with code {code}: see {log.name}")
    return code


def signals(
    name: str, number: int, points: list[str], workdir: Path, expected: dict, rng: random.Random
) -> list[Result]:
    """The recipe is sent the signal at each of the points, which are dealt out over as many runs as it takes."""
    hits = {point: [0, 0, 0, set()] for point in points}
    todo, tries = list(points), 0
    for number_of_run in itertools.count():
        run, hit_here, code = workdir / f"{name}_{number_of_run}", [], -1
        while code:
            passed = max((PASSED[path.stem] for path in (run / "done").glob("*.json")), default=0)
            point = next((point for point in todo if list(POINTS).index(point) >= passed), None)
            fault = ""
            if point:
                *_, calls, delay = POINTS[point]
                fault = f"{point}:{rng.randint(1, calls)}:{rng.uniform(0, delay):.4f}:{number}"
            code, tries = start(run, fault), tries + 1
            if code in (-number, PREEMPTED):
                todo.remove(point)
                hit_here.append(point)
                hits[point][0] += 1
                hits[point][1] += code == (PREEMPTED if number == signal.SIGTERM else -number)
                hits[point][2] += lost_steps(run)
                tries = 0
            elif code or tries > TRIES:
                raise RuntimeError(f"{fault}: exit code {code}, see {run}.log")
        differences = compare(expected, fruits(run), exact=number == signal.SIGKILL)
        for point in hit_here:
            hits[point][3].update(differences)
        if not todo:
            return [Result(f"{name}: {p}", *counts, sorted(found)) for p, (*counts, found) in hits.items()]


def kills(workdir: Path, expected: dict, rng: random.Random) -> list[Result]:
    """kill -9 at `--kills` instants."""
    points = list(itertools.islice(itertools.cycle(POINTS), KILLS.value))
    return signals("kill", signal.SIGKILL, points, workdir, expected, rng)


def terminations(workdir: Path, expected: dict, rng: random.Random) -> list[Result]:
    """SIGTERM at every point but the last, behind which the recipe just ends."""
    return signals("sigterm", signal.SIGTERM, list(POINTS)[:-1], workdir, expected, rng)


def workers(workdir: Path, expected: dict, rng: random.Random) -> list[Result]:
    """Verifier workers are killed and stopped while the recipe runs."""
    run = workdir / "workers"
    code = start(run, "workers")
    hits = len(run.with_suffix(".hits").read_text())
    return [Result("verifier workers killed, stopped", hits, 0 if code else hits, 0, compare(expected, fruits(run)))]


def damage(workdir: Path, expected: dict, rng: random.Random) -> list[Result]:
    """The newest checkpoint of a run that was killed is damaged."""
    results = []
    for name, harm in (("truncated", truncate), ("bit flipped", flip), ("file missing", Path.unlink)):
        run = workdir / f"damage_{name.replace(' ', '_')}"
        start(run, f"update:5:0:{int(signal.SIGKILL)}")
        steps = [path for path in (run / "train" / "checkpoints").iterdir() if path.name.isdigit()]  # not a save's rest
        newest = max(steps, key=lambda path: int(path.name))
        harm(max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size))
        before = lost_steps(run)
        code = start(run)
        lost = before + SETTINGS["training.checkpoint_every"]
        results.append(Result(f"newest checkpoint: {name}", 1, int(not code), lost, compare(expected, fruits(run))))
    return results


def truncate(path: Path) -> None:
    """Halves a file."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Flips a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def full(workdir: Path, expected: dict, rng: random.Random) -> list[Result]:
    """The disk is full for some seconds of the training. Takes the right to mount."""
    run = workdir / "full"
    run.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", run], check=False).returncode:
        return [Result("disk full (not allowed to mount)", 0, 0, 0, [])]
    try:
        with (run.with_suffix(".log")).open("a") as log:
            process = subprocess.Popen([sys.executable, __file__, f"--victim={run}"], stdout=log, stderr=log)
        while process.poll() is None and not logged(run / "train"):
            time.sleep(0.05)
        ballast = run / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4k"], stderr=subprocess.DEVNULL, check=False)
        time.sleep(rng.uniform(2, 4))
        ballast.unlink()
        process.wait()
        lost = lost_steps(run)
        code = start(run)
        return [Result("disk full for seconds", 1, int(not code), lost, compare(expected, fruits(run)))]
    finally:
        subprocess.run(["umount", run], check=False)


CAMPAIGNS = {"kill": kills, "sigterm": terminations, "workers": workers, "damage": damage, "full": full}


def logged(run: Path) -> list[int]:
    """The steps in the run's metrics."""
    return [row["step"] for row in metrics.read_metrics(run)]


def lost_steps(workdir: Path) -> int:
    """Steps of SFT and training that were logged but are in no checkpoint."""
    lost = 0
    for run in (workdir / "sft", workdir / "train"):
        saved = [int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit()]
        lost += max(0, max(logged(run), default=0) - max(saved, default=0))
    return lost


def fruits(workdir: Path) -> dict[str, object]:
    """What a finished recipe has found, without clocks and without what the engine did, which a restart spares."""

    def rows(run):
        found = [json.loads(line) for line in (workdir / run / "metrics.jsonl").read_text().splitlines()]
        return [
            {k: v for k, v in row.items() if not (k.startswith(("seconds", "rollout/")) or k.endswith(CLOCKS))}
            for row in found
        ]

    return {
        "parameters": load_file(workdir / "export" / "model.safetensors"),
        "metrics": rows("sft") + rows("train"),
        "samples": (workdir / "train" / "samples.jsonl").read_text(),
        "pass rates": sorted((workdir / "difficulty" / "pass_rates.jsonl").read_text().splitlines()[1:]),
        "responses": pd.read_parquet(workdir / "evaluation" / "responses.parquet").to_json(),
        "scores": json.loads((workdir / "evaluation" / "scores.json").read_text())["scores"],
    }


def compare(expected: dict, found: dict, *, exact: bool = True) -> list[str]:
    """Names of what is not the same to the bit.

    exact: False leaves out how far sampler and trainer are apart, in the last bits of which a step can differ that was
    sampled in two parts (`rollout/store.py`).
    """

    def plain(value):
        if isinstance(value, dict) and all(isinstance(x, np.ndarray) for x in value.values()):
            return {name: (x.shape, x.tobytes()) for name, x in value.items()}
        if isinstance(value, list) and not exact:
            return [
                {k: v for k, v in row.items() if "sampler_trainer" not in k} if isinstance(row, dict) else row
                for row in value
            ]
        return value

    return [name for name in expected if plain(expected[name]) != plain(found[name])]


def victim(run: Path, fault: str) -> None:
    """The recipe, hit by a fault."""
    enable_compilation_cache(run.parent / "compilation_cache")
    for module in (loop, difficulty, job):
        module.verifier_pool = lambda config: Graded(2)
    if fault == "workers":
        threading.Thread(target=harass, args=(run.with_suffix(".hits"),), daemon=True).start()
    elif fault:
        arm(*fault.split(":"))
    config = configs.load(Path(__file__).parents[1] / "configs" / "tiny.py", SETTINGS)
    with preemptible(config.training.grace_s):
        recipe.run(config, run)


def arm(point: str, call: str, seconds: str, number: str) -> None:
    """Makes the `call`-th call of the point's function send this process the signal, `seconds` after it began."""
    owner, name, *_ = POINTS[point]
    function, count = getattr(owner, name), itertools.count(1)

    def hit(*args, **settings):
        if next(count) == int(call):
            timer = threading.Timer(float(seconds), os.kill, (os.getpid(), int(number)))
            timer.daemon = True
            timer.start()
        return function(*args, **settings)

    setattr(owner, name, hit)


def harass(hits: Path) -> None:
    """Kills or stops a verifier worker of this process every while, and adds a letter to the file."""
    rng = random.Random(0)
    while True:
        time.sleep(rng.uniform(0.1, 0.6))
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for thread in Path("/proc/self/task").iterdir():
            children += (thread / "children").read_text().split()
        if children:
            number = rng.choice((signal.SIGKILL, signal.SIGSTOP))
            os.kill(int(rng.choice(children)), number)
            with hits.open("a") as file:
                file.write("K" if number == signal.SIGKILL else "S")


if __name__ == "__main__":
    cli.run(main)
