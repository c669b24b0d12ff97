"""Random-weight models of every kind in the architecture table, small enough to solve by hand."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cola_lib.models import ARCHITECTURES, LanguageModel, architecture_of

MODEL_TYPES = tuple(ARCHITECTURES)

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Kinds that slide their attention get a window shorter than the test's rows, so that it matters.
WINDOW = {"sliding_window": 5}


def tiny_model(model_type: str = "llama", seed: int = 0, **overrides: object) -> torch.nn.Module:
    """Random weights, with norms and biases away from their trivial starting values."""
    config = AutoConfig.for_model(model_type, **(SHAPE | WINDOW | overrides))
    config.tie_word_embeddings = False
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.randn_like(parameter) * 0.3 + 1
        elif name.endswith("bias"):
            parameter.data = torch.randn_like(parameter) * 0.1
        else:
            parameter.data = torch.randn_like(parameter) * 0.2
    return model.eval().requires_grad_(False)


def tiny_language_model(model_type: str = "llama", tokenizer: object = None, **overrides: object) -> LanguageModel:
    """The same, as the library's own type."""
    model = tiny_model(model_type, **overrides)
    return LanguageModel(model, tokenizer, f"tiny-{model_type}", architecture_of(model.config))
