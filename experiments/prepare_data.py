r"""Makes one clean dataset of several: repeats, problems that a benchmark asks, and long prompts are left out.

    python experiments/prepare_data.py --sources=problems.jsonl --output=data/mine
    python experiments/prepare_data.py --tokenizer=Qwen/Qwen3-4B --output=data/mixed \
        --sources=agentica-org/DeepScaleR-Preview-Dataset,inclusionAI/AReaL-boba-Data

Writes problems.parquet with the columns of the released files, a card (README.md) and what was left out and why
(skipped.txt, repeats.csv, overlaps.csv).
"""

from absl import flags

from configs import base
from polaris_jax import cli

SOURCES = flags.DEFINE_list("sources", None, "Parquet or jsonl files, directories or hub datasets.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Directory of the new dataset.", required=True)
TITLE = flags.DEFINE_string("title", "", "Title of the card (default: the output's name).")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "Of the model to be trained; without it no prompt is too long.")
MAX_PROMPT_TOKENS = flags.DEFINE_integer("max_prompt_tokens", 1024, "Longer prompts are left out.", lower_bound=1)
SUFFIX = flags.DEFINE_string("suffix", base.get_config().data.suffix, "Ends every question.")
NGRAM = flags.DEFINE_integer("ngram", 10, "Words in a row that no problem may share with a benchmark.", lower_bound=1)
OVERLAP_SHARE = flags.DEFINE_float(
    "overlap_share", 0.0, "Spare problems with at most this share of a benchmark question's runs of words."
)


def main(_: list[str]) -> None:
    """Prepares the dataset and prints what was done."""
    from polaris_jax.data import prepare

    prepared = prepare.prepare(
        SOURCES.value,
        OUTPUT.value,
        title=TITLE.value,
        suffix=SUFFIX.value,
        tokenizer=TOKENIZER.value,
        max_prompt_tokens=MAX_PROMPT_TOKENS.value,
        ngram=NGRAM.value,
        overlap_share=OVERLAP_SHARE.value,
    )
    print("\n".join(prepared.history))
    print(f"{len(prepared.problems):,} problems with a card: {OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
