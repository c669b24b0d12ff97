"""What a checkpoint holds, compared with what its configuration asks for before any weight is read."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig
from transformers.utils import (
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from cola_lib.errors import ColaError, NumericsError
from cola_lib.models.architectures import ARCHITECTURES

_SHOWN = 3
"""Names of tensors in a message; the rest are counted."""


def read_config(where: str) -> PretrainedConfig:
    """Read the configuration of a checkpoint whose weights are plain tensors of a known architecture."""
    refuse_adapter(where)
    settings, _ = PretrainedConfig.get_config_dict(where)
    # Before transformers looks the type up: it would ask whether to run the checkpoint's own code for it.
    ARCHITECTURES[str(settings.get("model_type"))]  # refused if it is not there
    config = AutoConfig.from_pretrained(where, trust_remote_code=False)
    attention = config._attn_implementation
    if isinstance(attention, str) and "/" in attention:
        raise ColaError(
            f"{where}/config.json names attention code on the hub, {attention}, which is never run; remove it"
        )
    _refuse_quantized(config, where)
    for name in ("auto_map", "transformers_weights"):
        config.__dict__.pop(name, None)
    if (Path(where) / GENERATION_CONFIG_NAME).exists():
        GenerationConfig.from_pretrained(where)  # transformers passes over one that is damaged
    return config


def refuse_adapter(where: str) -> None:
    """Refuse an adapter, which transformers would put on top of a model."""
    if find_adapter_config_file(where) is not None:
        raise ColaError(
            f"{where} holds an adapter and not a whole model; merge it with PEFT (model.merge_and_unload()), "
            "write the result with save_pretrained, and give that folder"
        )


def _refuse_quantized(config: PretrainedConfig, where: str) -> None:
    """Refuse a checkpoint whose weights are packed integers: there is nothing left to decide about them."""
    packed = getattr(config, "quantization_config", None)
    if packed:
        method = packed.get("quant_method", "unknown") if isinstance(packed, dict) else type(packed).__name__
        raise ColaError(
            f"{where} is quantized already ({method}), and packed integers are not read here. To compress, give "
            "the checkpoint it was made from; to evaluate, write the same compression again with --save-as dense. "
            "A model that rounds activations too is evaluated by what runs it, such as vLLM"
        )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers' report and its bar away: what it finds becomes an error."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def check_tensors(where: str, config: PretrainedConfig) -> torch.dtype:
    """Compare names and shapes of a checkpoint's tensors with its configuration, without reading their content."""
    files = TensorFiles(where)
    with _silent():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            config=config,
            dtype=torch.float32,
            device_map="meta",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    problem = _problem(loaded[1], config)
    if problem:
        raise ColaError(f"{where}: the weights do not fit config.json: {problem}")
    return files.dtype()


def _problem(found: Mapping[str, Any], config: PretrainedConfig) -> str:
    """Say how tensors and configuration differ, and what to do about it; nothing if they agree."""
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    differences = []
    if missing:
        differences.append(f"{_some(missing)} missing")
    if unexpected:
        differences.append(f"{_some(unexpected)} unexpected")
    if found["mismatched_keys"]:
        name, stored, wanted = min(found["mismatched_keys"])
        differences.append(f"{name} has shape {tuple(stored)} and should have {tuple(wanted)}")
    if not differences:
        return ""
    n_blocks = config.num_hidden_layers
    if any(re.search(r"(^|\.)(base_model|base_layer|lora_\w+|modules_to_save)\.", name) for name in unexpected):
        advice = "these are PEFT's names: merge the adapter (model.merge_and_unload()) and save the result"
    elif any(int(n) >= n_blocks for name in unexpected for n in re.findall(r"\blayers\.(\d+)\.", name)):
        advice = f"the file has blocks beyond num_hidden_layers = {n_blocks}: correct config.json"
    elif missing == ["lm_head.weight"]:
        advice = "save the head too, or set tie_word_embeddings if the head is the embedding"
    else:
        advice = "write the whole model with save_pretrained, weights and config.json together"
    return f"{'; '.join(differences)}; {advice}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"


def _cached(where: str, name: str) -> Path:
    """Path of a file of a checkpoint, fetched if it is on the hub."""
    found = cached_file(where, name)
    if found is None:
        raise OSError(f"{where} has no file {name}")
    return Path(found)


class TensorFiles:
    """Where each tensor of a checkpoint lies."""

    def __init__(self, where: str) -> None:
        self.where = where
        try:
            single = _cached(where, SAFE_WEIGHTS_NAME)
        except OSError:
            self.paths = self._of_shards()
        else:
            with safe_open(single, framework="pt") as file:
                self.paths = dict.fromkeys(file.keys(), single)

    def _of_shards(self) -> dict[str, Path]:
        """Read the index of a checkpoint of several files."""
        try:
            index = _cached(self.where, SAFE_WEIGHTS_INDEX_NAME)
        except OSError as error:
            raise ColaError(
                f"{self.where} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}, and only safetensors "
                "is read; load it with transformers where you trust it, and write it again with save_pretrained"
            ) from error
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {shard: _cached(self.where, shard) for shard in sorted(set(shard_of.values()))}
        return {name: shards[shard] for name, shard in shard_of.items()}

    def read(self, name: str, like: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Read one tensor."""
        return read_tensor(self.paths[name], name, like, device)

    def dtype(self) -> torch.dtype:
        """Find the data type that most of the numbers are stored in, from the files' headers."""
        sizes: Counter[torch.dtype] = Counter()
        for path in sorted(set(self.paths.values())):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dict
                    part = file.get_slice(name)
                    if shape := part.get_shape():
                        sizes[part[:0].dtype] += math.prod(shape)
        most = max(sizes, key=sizes.__getitem__)
        if not most.is_floating_point or most.itemsize < 2:
            raise ColaError(f"{self.where} stores its weights as {most}; give a checkpoint in 16 or 32 bits")
        return most


def read_tensor(path: Path, name: str, like: Tensor, device: torch.device | str) -> Tensor:
    """Copy one tensor out of a file, which is closed again so that no page of it stays in memory."""
    try:
        with safe_open(path, framework="pt") as file:
            stored = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ColaError(f"{path}: tensor {name!r} could not be read ({error}); the file is damaged or gone") from error
    if stored.shape != like.shape:
        raise ColaError(
            f"{path}: {name!r} has shape {tuple(stored.shape)}, and its config.json says {tuple(like.shape)}"
        )
    if (
        torch.device(device).type == "cuda"
    ):  # from pinned memory a copy is several times faster, and nobody waits for it
        return stored.to(like.dtype).pin_memory().to(device, non_blocking=True)
    return stored.to(device, like.dtype, copy=True)


def stored_as(dtype: torch.dtype, tensor: Tensor, name: str) -> Tensor:
    """Give a weight the data type of its file, if it has another."""
    if tensor.dtype == dtype or not tensor.is_floating_point():
        return tensor
    stored = tensor.to(dtype)
    if not torch.isfinite(stored).all():
        raise NumericsError(name, f"its weight has values that {dtype}, in which the source is stored, cannot hold")
    return stored
