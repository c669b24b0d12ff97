"""Sets handed to other tools: every row, once, in order, and no token twice."""

from __future__ import annotations

import dataclasses

import datasets
import pytest
import torch
from tokenizers import processors

from cola_lib.calibration import build_calibration_set
from cola_lib.curation import for_gptqmodel, for_llmcompressor, row_texts, write_dataset
from cola_lib.curation.dataset import card, curated
from cola_lib.data import Sample
from cola_lib.errors import DataError
from tests.byte_tokenizer import byte_tokenizer
from tests.test_walk import rows

CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def samples(n=8):
    return [
        Sample(f"s{i}", f"Text {i} says é and the land.", "here", question=f"Why {i}?", answer=f"So {i}.")
        for i in range(n)
    ]


def bos_tokenizer():
    """Begins every text with ``<s>`` by itself, and has the chat template's tokens as special ones."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = "<s>" + CHAT
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def test_llmcompressor_gets_the_rows_as_they_are():
    calibration = rows((12,) * 5)
    given = for_llmcompressor(calibration, batch_size=2)
    assert given.keys() == {"dataset"}
    batches = list(given["dataset"])
    assert [batch.keys() for batch in batches] == [{"input_ids", "attention_mask"}] * 3
    assert torch.equal(torch.cat([batch["input_ids"] for batch in batches]), calibration.input_ids)
    assert all(batch["attention_mask"].all() and batch["input_ids"].dtype == torch.int64 for batch in batches)


def test_llmcompressor_gets_rows_of_unequal_length_one_by_one():
    ragged = rows((7, 12, 3))
    assert [batch["input_ids"][0].tolist() for batch in for_llmcompressor(ragged)["dataset"]] == ragged.token_lists()
    with pytest.raises(DataError, match="3 to 12 tokens, which make no batches"):
        for_llmcompressor(ragged, batch_size=2)


def test_gptqmodel_gets_short_rows_too():
    ragged = rows((12, 7, 1))
    given = for_gptqmodel(ragged)
    assert [row["input_ids"] for row in given["calibration"]] == ragged.token_lists()
    assert [sum(row["attention_mask"]) for row in given["calibration"]] == [12, 7, 1]
    assert all(row.keys() == {"input_ids", "attention_mask"} for row in given["calibration"])
    assert given["calibration_sort"] is None and given["calibration_data_min_length"] == 0


@pytest.mark.parametrize("format", ["text", "chat"])
def test_a_text_that_is_tokenized_again_has_each_special_token_once(format):
    tokenizer = bos_tokenizer()
    made = build_calibration_set(samples(), tokenizer, n_samples=4, seq_len=96, layout="pad", format=format)
    assert (made.input_ids[:, 0] == 0).all() and (made.input_ids[:, 1] != 0).all()
    written = row_texts(made, tokenizer)
    assert not any(text.startswith("<s>") for text in written)
    assert all(text.count("<|im_start|>") == (2 if format == "chat" else 0) for text in written)
    assert [tokenizer(text).input_ids for text in written] == made.token_lists()


def test_ends_of_documents_are_kept_where_the_tokenizer_adds_none():
    tokenizer = byte_tokenizer()
    made = build_calibration_set(samples(), tokenizer, n_samples=3, seq_len=40, layout="pack")
    written = row_texts(made, tokenizer)
    assert any("<s>" in text for text in written)
    assert [tokenizer(text).input_ids for text in written] == made.token_lists()


@pytest.mark.parametrize("tool", ["llm-compressor", "GPTQModel"])
def test_weights_are_not_lost_in_silence(tool):
    weighted = dataclasses.replace(rows((12, 12)), weights=(1.0, 2.0))
    calls = {
        "llm-compressor": for_llmcompressor,
        "GPTQModel": for_gptqmodel,
    }
    with pytest.raises(DataError, match=f"{tool} counts every row alike"):
        calls[tool](weighted)


def test_the_card_says_how():
    plain = rows((12,) * 5)
    facts = curated(plain, byte_tokenizer(), {"strategy": "x", "options": {}}).facts
    assert "oneshot(model=model" in card(facts) and "model.quantize(list(rows)" in card(facts)
    weighted = dataclasses.replace(plain, weights=(1.0,) * 5)
    facts = curated(weighted, byte_tokenizer(), {"strategy": "x", "options": {}}).facts
    assert "oneshot" not in card(facts) and "weights of the rows" in card(facts)


def test_a_set_is_not_taken_for_another_in_a_folder_of_the_same_name(tmp_path):
    """datasets answered from its cache: the first set of that name, whatever was written since."""
    for where, lengths in (("one", (12,) * 3), ("one", (12,) * 5), ("two", (12,) * 7)):
        calibration = rows(lengths, seed=len(lengths))
        made = curated(calibration, byte_tokenizer(), {"strategy": "x", "options": {}})
        folder = write_dataset(made, tmp_path / where / "set", overwrite=True)
        found = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert found["input_ids"][:] == calibration.token_lists()
