"""One table of what a decoder block looks like, keyed on ``config.model_type``.

Everything that depends on the kind of model is here: where the decoder blocks are, which linear
layers of a block read the same input (they share one Gram matrix), and which earlier module produces
that input (AWQ moves a scale into it). To add a model, add a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PretrainedConfig

from cola_lib.registry import Registry


@dataclass(frozen=True)
class Producer:
    """The module whose output channels become an input's channels, possibly through a gate."""

    module: str
    rows: Callable[[PretrainedConfig], Tensor] | None = None
    offset: float = 0.0
    unless: str | None = None


@dataclass(frozen=True)
class InputGroup:
    """Linear layers of a block that read the same input."""

    name: str
    layers: tuple[str, ...]
    producer: Producer | None
    unclipped: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """Where a model type keeps what compression needs."""

    model_type: str
    groups: tuple[InputGroup, ...]
    blocks: str = "layers"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all linear layers of a block, relative to it."""
        return tuple(layer for group in self.groups for layer in group.layers)


def _heads(config: PretrainedConfig) -> tuple[int, int, int]:
    """Return query heads, key-value heads and head width."""
    n_heads = config.num_attention_heads
    n_kv = getattr(config, "num_key_value_heads", None) or n_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return n_heads, n_kv, head_dim


def _value_rows(config: PretrainedConfig) -> Tensor:
    """Map each channel of the attention output to the row of ``v_proj`` that it averages."""
    n_heads, n_kv, head_dim = _heads(config)
    head = torch.arange(n_heads) // (n_heads // n_kv)  # key-value head of each query head
    return (head[:, None] * head_dim + torch.arange(head_dim)).reshape(-1)


def _fused_value_rows(config: PretrainedConfig) -> Tensor:
    """Like :func:`_value_rows`, in a fused projection that stacks queries, keys and values."""
    n_heads, n_kv, head_dim = _heads(config)
    return _value_rows(config) + (n_heads + n_kv) * head_dim


def _fused_up_rows(config: PretrainedConfig) -> Tensor:
    """Rows of the up half in a fused projection that stacks gate and up."""
    return torch.arange(config.intermediate_size) + config.intermediate_size


def _gated(attn_norm: str | None, mlp_norm: str | None, offset: float = 0.0) -> tuple[InputGroup, ...]:
    """Return the groups of the common block: q, k, v, o and a gated MLP."""

    def norm(name: str | None) -> Producer | None:
        return Producer(name, offset=offset) if name else None

    queries_keys, gate_up = ("self_attn.q_proj", "self_attn.k_proj"), ("mlp.gate_proj", "mlp.up_proj")
    return (
        InputGroup("attn_in", (*queries_keys, "self_attn.v_proj"), norm(attn_norm), queries_keys, queries_keys),
        InputGroup("attn_out", ("self_attn.o_proj",), Producer("self_attn.v_proj", _value_rows, unless="clip_qkv")),
        InputGroup("mlp_in", gate_up, norm(mlp_norm), joined=gate_up),
        InputGroup("mlp_down", ("mlp.down_proj",), Producer("mlp.up_proj")),
    )


_PRE_NORM = _gated("input_layernorm", "post_attention_layernorm")
# Gemma 2 and 3 normalize before and after each half; only the norm before it feeds the MLP.
_SANDWICH_NORM = _gated("input_layernorm", "pre_feedforward_layernorm", offset=1.0)
# OLMo's norms have no weight; OLMo 2 and 3 normalize only the outputs, so the inputs are the residual stream.
_NO_INPUT_NORM = _gated(None, None)
_QKV, _GATE_UP = ("self_attn.qkv_proj",), ("mlp.gate_up_proj",)
_FUSED = (
    InputGroup("attn_in", _QKV, Producer("input_layernorm"), _QKV, _QKV),
    InputGroup("attn_out", ("self_attn.o_proj",), Producer("self_attn.qkv_proj", _fused_value_rows)),
    InputGroup("mlp_in", _GATE_UP, Producer("post_attention_layernorm"), joined=_GATE_UP),
    InputGroup("mlp_down", ("mlp.down_proj",), Producer("mlp.gate_up_proj", _fused_up_rows)),
)

ARCHITECTURES: Registry[Architecture] = Registry(
    "model type",
    named="model_type",
    hint="to add one, add its row to cola_lib/models/architectures.py; the tests then try it",
)
"""Where a model's linear layers are, by its ``model_type``; ``ARCHITECTURES.register`` adds to it."""

for _model_type, _groups in {
    "llama": _PRE_NORM,
    "mistral": _PRE_NORM,
    "ministral": _PRE_NORM,
    "qwen2": _PRE_NORM,
    "qwen3": _PRE_NORM,
    "smollm3": _PRE_NORM,
    "granite": _PRE_NORM,
    "gemma": _gated("input_layernorm", "post_attention_layernorm", offset=1.0),
    "gemma2": _SANDWICH_NORM,
    "gemma3_text": _SANDWICH_NORM,
    "olmo": _NO_INPUT_NORM,
    "olmo2": _NO_INPUT_NORM,
    "olmo3": _NO_INPUT_NORM,
    "phi3": _FUSED,
}.items():
    ARCHITECTURES.register(Architecture(_model_type, _groups))


def architecture_of(config: PretrainedConfig) -> Architecture:
    """Look up a model's row."""
    found = ARCHITECTURES[config.model_type]

    def ruled_out(producer: Producer | None) -> bool:
        return (
            producer is not None and producer.unless is not None and getattr(config, producer.unless, None) is not None
        )

    if not any(ruled_out(group.producer) for group in found.groups):
        return found
    groups = (replace(group, producer=None) if ruled_out(group.producer) else group for group in found.groups)
    return replace(found, groups=tuple(groups))
