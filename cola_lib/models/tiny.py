"""A model with random weights that needs no file: for examples, for tests, and for trying out what you write."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from cola_lib.models.architectures import architecture_of
from cola_lib.models.loading import LanguageModel

MERGES = [("a", "n"), ("an", "d"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("Ġ", "Ġ"), ("Ã", "©")]
"""A few, so that a boundary can fall inside a token."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes and a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", *alphabet, *("".join(merge) for merge in MERGES)])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>")


def tiny_model(seed: int = 0, *, n_blocks: int = 2, width: int = 32) -> LanguageModel:
    """Make a Llama of random weights with a tokenizer of bytes, in a few milliseconds.

    Parameters
    ----------
    seed : int
        Of the weights.
    n_blocks : int
        Decoder blocks.
    width : int
        Of the residual stream, a multiple of 16; the MLP is twice as wide.

    Returns
    -------
    LanguageModel
        Named ``"tiny"``, on the CPU, in float32. It can do nothing: what is computed with it shows shapes and types.

    Examples
    --------
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> len(lm.blocks), lm.dtype
    (2, torch.float32)
    """
    tokenizer = byte_tokenizer()
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=n_blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        max_position_embeddings=1024,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data = 0.2 * torch.randn_like(parameter)
    model = model.eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, "tiny", architecture_of(model.config))
