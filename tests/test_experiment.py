"""What a notebook asks for: the same request gives the same cells, and draws share nothing."""

from __future__ import annotations

import pytest

from cola_lib.compress import method_spec
from cola_lib.errors import SpecError, UnknownNameError
from cola_lib.experiments import RANDOM_TOKENS, Experiment, as_spec
from tests.tiny_models import tiny_language_model

METHODS = [{"method": "wanda", "sparsity": 0.5}, {"method": "rtn", "bits": 3, "group_size": 16}]


@pytest.fixture(scope="module")
def small(tmp_path_factory, smollm2_tokenizer):
    """A tiny model with the embedded model's tokenizer, on real sources and real items."""
    lm = tiny_language_model("llama", smollm2_tokenizer, vocab_size=len(smollm2_tokenizer), max_position_embeddings=512)
    folder = tmp_path_factory.mktemp("model")
    lm.model.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    store = tmp_path_factory.mktemp("store")
    return Experiment(
        str(folder), n_samples=2, seq_len=32, tokens_per_capability=400, store=store, capabilities=("math", "code")
    )


def test_a_grid_is_computed_once_and_found_again(small):
    first = small.run(["c4", ["c4", "code"], RANDOM_TOKENS], METHODS, draws=2, progress=False)
    assert (first.n_computed, first.n_read) == (2 + 3 * 2, 0)  # dense, rtn; wanda for 3 sources and 2 draws
    assert set(first.frame["source"].dropna()) == {"c4", "c4+code", RANDOM_TOKENS}
    again = small.run(["c4", ["c4", "code"], RANDOM_TOKENS], METHODS, draws=2, progress=False)
    assert (again.n_computed, again.n_read) == (0, 8)
    part = small.run(["c4"], METHODS, draws=[1], n_draws=2, progress=False)
    assert part.n_computed == 0  # draw 1 of 2 is the same set however it is asked for


def test_draws_of_a_source_share_no_sample(small):
    sets = [small.calibration("wikipedia", draw, 3) for draw in range(3)]
    ids = [{i for row in one.sample_ids for i in row} for one in sets]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
    assert len({one.fingerprint for one in sets}) == 3


def test_a_draw_beyond_their_number_is_refused(small):
    with pytest.raises(SpecError, match="draw 3 was asked for, of 3 draws"):
        small.run(["c4"], METHODS, draws=[3], n_draws=3, progress=False)


def test_methods_are_written_as_mappings():
    assert as_spec({"method": "gptq", "bits": 3}) == method_spec("gptq", bits=3)
    assert as_spec(method_spec("wanda")) == method_spec("wanda")
    with pytest.raises(SpecError, match="has no 'method'"):
        as_spec({"bits": 3})
    with pytest.raises(UnknownNameError, match="nearest: sparsity"):
        as_spec({"method": "wanda", "sparcity": 0.5})
