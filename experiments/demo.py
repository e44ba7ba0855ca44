"""The whole way in minutes on two cores: random weights -> SFT -> GRPO -> evaluation -> Hugging Face export.

python experiments/demo.py --workdir=runs/demo [--config.seed=1]
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from polaris_jax import cli, hf
from polaris_jax import config as configs
from polaris_jax.data.prompts import make_prompts
from polaris_jax.evaluation import job
from polaris_jax.rollout import RolloutEngine, Sampling
from polaris_jax.runs import start
from polaris_jax.sharding.mesh import make_mesh
from polaris_jax.training import loop, sft

CONFIG = config_flags.DEFINE_config_file("config", "configs/tiny.py", "The config; --config.KEY=VALUE overrides.")
WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Where everything goes.")
GREEDY_ANSWERS = 8  # compared with transformers' generate


def main(_: list[str]) -> None:
    """Runs every phase and writes summary.json, training.png, the checkpoints and the export."""
    began, workdir, config = time.perf_counter(), Path(WORKDIR.value), CONFIG.value
    console, seconds = Console(), {}

    def timed(phase, function, *args):
        console.rule(phase)
        before = time.perf_counter()
        result = function(*args)
        seconds[phase] = time.perf_counter() - before
        return result

    def scores(name, phase, model_path):
        trained = configs.override(config, {"model.path": model_path})
        return timed(phase, job.run, trained, workdir / "evaluation" / name).scores["arithmetic"]

    found = {"base": scores("base", "evaluation of random weights", "")}
    sft_history = timed("SFT", sft.run, config, workdir / "sft")
    found["sft"] = scores("sft", "evaluation after SFT", str(workdir / "sft"))
    rl_config = configs.override(config, {"model.path": str(workdir / "sft")})
    history = timed("GRPO", loop.run, rl_config, workdir / "rl")
    found["rl"] = scores("rl", "evaluation after GRPO", str(workdir / "rl"))
    matches = timed("export", export_and_compare, config, workdir / "rl", workdir / "hf")

    history.plot().savefig(workdir / "training.png", dpi=120)
    console.print(*report(found, seconds, sft_history, history), sep="\n")
    summary = {f"accuracy_{name}": score[f"avg@{score['samples']}"]["mean"] for name, score in found.items()}
    summary |= {f"length_{name}": score["length"]["mean"] for name, score in found.items()}
    summary |= {"problems": found["rl"]["problems"], "samples": found["rl"]["samples"]}
    summary |= {"seconds": time.perf_counter() - began, "seconds_by_phase": seconds}
    summary |= {"export_dir": str(workdir / "hf"), "generate_matches": matches}
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    console.print(f"greedy answers equal to those of transformers' generate: {'yes' if matches else 'NO'}")
    console.print(f"picture      {workdir}/training.png\nsummary      {workdir}/summary.json")
    console.print(f"checkpoints  {workdir}/sft, {workdir}/rl\nexport       {workdir}/hf")
    console.print(f"{summary['seconds']:.0f} s in all")


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
    ours = {r.problem_id: r.tokens for r in engine.generate(params, list(prompts.values()), 1, greedy, 0)}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(target)
    return all(
        np.array_equal(ours[name], greedy_answer(theirs, prompt.tokens, longest)) for name, prompt in prompts.items()
    )


def greedy_answer(model: transformers.PreTrainedModel, prompt: np.ndarray, max_tokens: int) -> np.ndarray:
    """int32 [response]: what transformers' generate answers to int32 [prompt]."""
    inputs = torch.tensor(prompt[None], dtype=torch.long)
    mask = torch.ones_like(inputs)
    output = model.generate(inputs, attention_mask=mask, do_sample=False, max_new_tokens=max_tokens)
    return output[0, len(prompt) :].numpy()


def report(found, seconds, sft_history, history):
    """Two tables: how good and how long the answers are; where the time went."""
    title = f"{found['rl']['problems']} held-out problems, {found['rl']['samples']} samples each"
    table = Table("", "accuracy", "95% interval", "mean length", "cut off", title=title)
    for name, model in (("base", "random weights"), ("sft", "after SFT"), ("rl", "after GRPO")):
        score = found[name]
        accuracy, length = score[f"avg@{score['samples']}"], score["length"]["mean"]
        interval = f"{accuracy['low']:.1%} - {accuracy['high']:.1%}"
        table.add_row(model, f"{accuracy['mean']:.1%}", interval, f"{length:.1f}", f"{score['cut_off']:.1%}")
    yield table
    table = Table("", "seconds", "tokens/s", title="time")
    sampled, updated = (history.frame()[f"{part}/tokens_per_s"].median() for part in ("rollout", "update"))
    speeds = {
        "SFT": f"{sft_history.frame().tokens_per_s.median():,.0f}",
        "GRPO": f"{sampled:,.0f} sampled, {updated:,.0f} trained",
    }
    for phase, spent in seconds.items():
        table.add_row(phase, f"{spent:.0f}", speeds.get(phase, ""))
    yield table


if __name__ == "__main__":
    cli.run(main)
