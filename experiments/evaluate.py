r"""Evaluates a model on benchmarks, scores the responses of another, or compares evaluations.

    python experiments/evaluate.py --model=Qwen/Qwen3-4B --benchmarks=aime24,aime25 --samples=32 --output=evals/qwen3-4b
    python experiments/evaluate.py --config=configs/polaris_4b.py --model=runs/polaris_4b --output=evals/polaris-4b \
        --config.evaluation.yarn_factor=1.5 --config.evaluation.max_response_tokens=90000
    python experiments/evaluate.py --responses=theirs.parquet --output=evals/theirs
    python experiments/evaluate.py --compare=evals/qwen3-4b,evals/polaris-4b --output=evals/comparison

A model is a Hugging Face directory or hub name, a training run, or what import_hf.py wrote. An evaluation that was
stopped resumes when it is started again with the same output.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from configs import base
from polaris_jax import cli
from polaris_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file(
    "config", base.__file__, "The config; --config.KEY=VALUE overrides one of its keys."
)
MODEL = flags.DEFINE_string("model", None, "The model, in place of config.model's path and tokenizer.")
BENCHMARKS = flags.DEFINE_list(
    "benchmarks",
    None,
    "aime24, aime25, amc23, minerva, olympiad, arithmetic; from the hub hmmt25, aime26, math500, gsm8k; datasets; "
    "reasoning_gym:NAME. aime24:32 takes 32 samples.",
)
SAMPLES = flags.DEFINE_integer("samples", None, "Responses to each problem.")
OUTPUT = flags.DEFINE_string("output", None, "Directory for responses and scores.", required=True)
RESPONSES = flags.DEFINE_string("responses", None, "Score this parquet or jsonl file of prompts and responses.")
COMPARE = flags.DEFINE_list("compare", None, "Output directories of evaluations to lay side by side.")


def main(_: list[str]) -> None:
    """Does what the flags say, and prints the table and where things are."""
    if sum(flag is not None for flag in (MODEL.value, RESPONSES.value, COMPARE.value)) > 1:
        raise UserError("give one of --model, --responses and --compare")
    print("loading", flush=True)
    import jax

    from polaris_jax import config as configs
    from polaris_jax import report as html
    from polaris_jax.data.rows import summary
    from polaris_jax.evaluation import job, report
    from polaris_jax.plan.evaluation import fit
    from polaris_jax.plan.here import memory_line
    from polaris_jax.rollout import platforms
    from polaris_jax.sharding.multihost import is_writer

    console, output = Console(), Path(OUTPUT.value)
    if COMPARE.value:
        frame = report.compare(report.load_runs(COMPARE.value))
        report.save_comparison(frame, output)
        console.print(report.comparison_table(frame))
        html.write([path if path.is_dir() else path.parent for path in map(Path, COMPARE.value)], output / html.NAME)
        console.print(f"comparison.png, comparison.json and report.html: {output}", soft_wrap=True)
        return
    if RESPONSES.value:
        result, skipped = job.judge_file(RESPONSES.value, CONFIG.value, output)
        if skipped:
            console.print(f"{len(skipped)} rows left out: {summary(skipped)}", markup=False, soft_wrap=True)
        title = RESPONSES.value
    else:
        config = configs.override(CONFIG.value, overrides())
        fitted = fit(config, platforms.memory(jax.local_devices()[0]), jax.device_count())
        if fitted.mesh != config.mesh:
            console.print(f"tensor parallel over {fitted.mesh.tensor} of {jax.device_count()} devices, by their memory")
        config = fitted
        print(memory_line(config, "evaluation"), flush=True)
        result = job.run(config, output)
        title = config.model.path or config.model.preset
    console.print(report.table(result.scores, title))
    for line in report.explained(result.scores):
        console.print(line, markup=False, soft_wrap=True)
    if is_writer():
        html.write([output])
    console.print(f"scores.json, responses.parquet and report.html: {output}", soft_wrap=True)


def overrides() -> dict[str, object]:
    """The config's keys that --model, --benchmarks and --samples stand for."""
    found = {"evaluation.benchmarks": BENCHMARKS.value and tuple(BENCHMARKS.value), "evaluation.samples": SAMPLES.value}
    if MODEL.value:
        found |= {"model.path": MODEL.value, "model.tokenizer": ""}
    return {key: value for key, value in found.items() if value is not None}


if __name__ == "__main__":
    cli.run(main)
