"""What every job starts from fits together."""

from polaris_jax.runs.start import load_model, load_tokenizer
from polaris_jax.sharding.mesh import make_mesh


def test_a_model_knows_which_rows_of_its_vocabulary_have_tokens(tiny_config):
    config = tiny_config()
    tokenizer = load_tokenizer(config)
    model, _ = load_model(config, make_mesh(config.mesh), tokenizer)
    assert max(tokenizer.get_vocab().values()) == model.known_tokens - 1 < model.vocab_size - 1
