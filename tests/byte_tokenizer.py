"""A tokenizer that needs no file: bytes, and a few merges so that a boundary can fall inside a token."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MERGES = [("a", "n"), ("an", "d"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("Ġ", "Ġ"), ("Ã", "©")]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """264 tokens; ``<s>`` (id 0) begins and ends texts, and is not added by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", *alphabet, *("".join(merge) for merge in MERGES)])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>")
