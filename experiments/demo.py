"""The whole way in minutes on two cores: random weights -> SFT -> GRPO -> evaluation -> Hugging Face export.

python experiments/demo.py --workdir=runs/demo [--config.seed=1]

Ends with exit code 1 and says why where GRPO did not lift the accuracy as it should: see `shortfalls`.
"""

import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from polaris_jax import cli, hf, report
from polaris_jax import config as configs
from polaris_jax.data import arithmetic
from polaris_jax.data.prompts import make_prompts
from polaris_jax.evaluation import job
from polaris_jax.evaluation.evaluate import Evaluation
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.runs import start
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import loop, sft
from polaris_jax.training.metrics import History

CONFIG = config_flags.DEFINE_config_file("config", "configs/tiny.py", "The config; --config.KEY=VALUE overrides.")
WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Where everything goes.")
GREEDY_ANSWERS = 4  # compared with transformers' generate
WATCHED, WATCH_EVERY = 64, 5  # held-out problems whose accuracy the live view shows, every n-th step of GRPO
EXAMPLES = 3  # problems shown with the answer before and after

# What every seed and processor must reach; docs/demo.md has the runs.
AFTER_SFT = (0.15, 0.5)
LIFT = 0.35
AFTER_GRPO = 0.75
GROWTH = 1.2  # of the mean response length
NEXT = """\
GRPO with more samples      .venv/bin/python experiments/train.py --config=configs/tiny.py --workdir=runs/grpo \\
                                --config.model.path={workdir}/sft --config.rollout.samples=16
every part of the recipe    .venv/bin/python experiments/polaris.py --config=configs/tiny_stages.py --workdir=runs/tiny
one step, array by array    notebooks/tour.ipynb
"""


def main(_: list[str]) -> int:
    """Runs every phase and writes summary.json, training.png, the checkpoints and the export; the exit code."""
    began, workdir, config = time.perf_counter(), Path(WORKDIR.value), CONFIG.value
    console, seconds, device = Console(), {}, jax.devices()[0].device_kind
    console.print(
        f"A tiny Qwen3 with random weights learns chained arithmetic, in minutes on two cores (here: {device}): "
        f"{config.sft.steps} steps of imitating careful and hasty traces, then {config.training.steps} steps of GRPO."
    )

    def timed(phase, function, *args):
        console.rule(phase)
        before = time.perf_counter()
        result = function(*args)
        seconds[phase] = time.perf_counter() - before
        return result

    def evaluated(name, phase):
        trained = configs.override(config, {"model.path": str(workdir / name)})
        return timed(phase, job.run, trained, workdir / "evaluation" / name)

    sft_history = timed("SFT", sft.run, config, workdir / "sft")
    before = evaluated("sft", "evaluation after SFT")
    handful = {"training.evaluate_every": WATCH_EVERY, "evaluation.max_problems": WATCHED, "evaluation.samples": 1}
    rl_config = configs.override(config, {"model.path": str(workdir / "sft")} | handful)
    history = timed("GRPO", loop.run, rl_config, workdir / "rl")
    after = evaluated("rl", "evaluation after GRPO")
    matches = timed("export", export_and_compare, config, workdir / "rl", workdir / "hf")

    history.plot().savefig(workdir / "training.png", dpi=120)
    found = {"sft": before.scores["arithmetic"], "rl": after.scores["arithmetic"]}
    console.rule("what came out")
    tables = accuracy_table(before, after), lines_table(before, after), time_table(seconds, sft_history, history)
    console.print(*examples(before, after, config.data.suffix), *tables, sep="\n")
    summary = {f"accuracy_{name}": score[f"avg@{score['samples']}"]["mean"] for name, score in found.items()}
    summary |= {f"length_{name}": score["length"]["mean"] for name, score in found.items()}
    summary |= {"problems": found["rl"]["problems"], "samples": found["rl"]["samples"], "generate_matches": matches}
    summary |= {"seconds": time.perf_counter() - began, "seconds_by_phase": seconds}
    faults = shortfalls(summary)
    (workdir / "summary.json").write_text(json.dumps(summary | {"shortfalls": faults}, indent=2), encoding="utf-8")
    console.print(f"report       {report.write([workdir])}", soft_wrap=True)
    console.print(f"picture      {workdir}/training.png\nsummary      {workdir}/summary.json")
    console.print(f"checkpoints  {workdir}/sft, {workdir}/rl\nexport       {workdir}/hf")
    console.print(f"{summary['seconds']:.0f} s in all, on {device}")
    if faults:
        console.print("[bold red]This run does not show what it should:[/]", *faults, sep="\n  ")
        return 1
    console.print("What to type next:\n" + NEXT.format(workdir=workdir), highlight=False)
    return 0


def shortfalls(summary: dict) -> list[str]:
    """What the run failed to show, a sentence each; empty where reinforcement learning worked."""
    sft_accuracy, accuracy = summary["accuracy_sft"], summary["accuracy_rl"]
    growth = summary["length_rl"] / summary["length_sft"]
    low, high = AFTER_SFT
    checks = {
        f"Accuracy after SFT is {sft_accuracy:.1%}, not between {low:.0%} and {high:.0%}.": low <= sft_accuracy <= high,
        f"GRPO lifts it by {accuracy - sft_accuracy:.1%}, not by {LIFT:.0%} or more.": accuracy - sft_accuracy >= LIFT,
        f"Accuracy after GRPO is {accuracy:.1%}, not {AFTER_GRPO:.0%} or more.": accuracy >= AFTER_GRPO,
        f"Responses are {growth:.2f} times as long, not {GROWTH} times or more.": growth >= GROWTH,
        "transformers' generate gives other greedy answers on the export.": summary["generate_matches"],
    }
    return [sentence for sentence, holds in checks.items() if not holds]


def examples(before: Evaluation, after: Evaluation, suffix: str) -> Iterator[Panel]:
    """The first held-out problems whose first response was wrong after SFT and is right after GRPO."""
    questions = {problem.id: problem.question.removesuffix(suffix).strip() for problem in after.problems}
    first = {record.problem_id: record for record in before.records if record.sample == 0}
    improved = (r for r in after.records if r.sample == 0 and r.correct and not first[r.problem_id].correct)
    for record in islice(improved, EXAMPLES):
        wrong, right = first[record.problem_id].response, record.response
        body = Text(f"after SFT, wrong:\n{wrong}\n\nafter GRPO, right:\n{right}")
        yield Panel(body, title=questions[record.problem_id], title_align="left")


def export_and_compare(config, source: Path, target: Path) -> bool:
    """Exports a run; whether transformers' generate on the export gives the greedy answers that the engine gives."""
    mesh, tokenizer = make_mesh(config.mesh), start.load_tokenizer(config)
    model, params = hf.load(source, mesh=mesh)
    hf.save(params, model, target, tokenizer=tokenizer, dtype="float32", overwrite=True)
    problems = job.load_benchmarks(config.evaluation.benchmarks, suffix=config.data.suffix, most=GREEDY_ANSWERS)
    prompts = make_prompts(problems, tokenizer, config.data.max_prompt_tokens)
    longest = config.evaluation.max_response_tokens
    greedy = Sampling(temperature=0.0, max_response_tokens=longest, stop_ids=hf.stop_ids(tokenizer))
    engine = RolloutEngine(model, mesh, config.rollout)
    ours = {r.problem_id: r.tokens for r in engine.generate(params, prompts, 1, greedy, 0)}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(target)
    return all(np.array_equal(ours[p.problem.id], greedy_answer(theirs, p.tokens, longest)) for p in prompts)


def greedy_answer(model: transformers.PreTrainedModel, prompt: np.ndarray, max_tokens: int) -> np.ndarray:
    """int32 [response]: what transformers' generate answers to int32 [prompt]."""
    inputs = torch.tensor(prompt[None], dtype=torch.long)
    mask = torch.ones_like(inputs)
    output = model.generate(inputs, attention_mask=mask, do_sample=False, max_new_tokens=max_tokens)
    return output[0, len(prompt) :].numpy()


def accuracy_table(before: Evaluation, after: Evaluation) -> Table:
    """How good and how long the answers are."""
    score = after.scores["arithmetic"]
    title = f"{score['problems']} held-out problems, {score['samples']} samples each"
    table = Table("", "accuracy", "95% interval", "mean length", "truncated", title=title)
    for model, result in (("after SFT", before), ("after GRPO", after)):
        score = result.scores["arithmetic"]
        accuracy, length = score[f"avg@{score['samples']}"], score["length"]["mean"]
        interval = f"{accuracy['low']:.1%} - {accuracy['high']:.1%}"
        table.add_row(model, f"{accuracy['mean']:.1%}", interval, f"{length:.1f}", f"{score['cut_off']:.1%}")
    return table


def lines_table(before: Evaluation, after: Evaluation) -> Table:
    """What goes wrong: how many lines do one operation and how many several at once, and how often each is right."""
    table = Table("", "lines of one operation", "right", "of several", "right", title="what the responses are made of")
    for model, result in (("after SFT", before), ("after GRPO", after)):
        lines = [line for record in result.records for line in arithmetic.lines(record.response)]
        cells = []
        for rights in ([right for n, right in lines if n == 1], [right for n, right in lines if n > 1]):
            cells += [str(len(rights)), f"{np.mean(rights):.1%}" if rights else ""]
        table.add_row(model, *cells)
    return table


def time_table(seconds: dict[str, float], sft_history: History, history: History) -> Table:
    """Where the time went."""
    table = Table("", "seconds", "tokens/s", title="time")
    sampled, updated = (history.frame()[f"{part}/tokens_per_s"].median() for part in ("rollout", "update"))
    speeds = {
        "SFT": f"{sft_history.frame().tokens_per_s.median():,.0f}",
        "GRPO": f"{sampled:,.0f} sampled, {updated:,.0f} trained",
    }
    for phase, spent in seconds.items():
        table.add_row(phase, f"{spent:.0f}", speeds.get(phase, ""))
    return table


if __name__ == "__main__":
    cli.run(main)
