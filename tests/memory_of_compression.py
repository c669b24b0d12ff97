"""Compress a checkpoint streamed and whole, and print by how many bytes memory grew at most each time.

The high-water mark of the resident set counts everything: tensors, buffers of the writer, mapped pages of the files.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

N_BLOCKS = 16


def resident(field: str) -> int:
    """Bytes of the resident set: VmRSS now, VmHWM at most since the process began."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def write_checkpoint(folder: Path, n_blocks: int = N_BLOCKS, d: int = 512, d_mlp: int = 1536) -> int:
    """Write a model whose blocks are alike, a file for each, and return the bytes of a block."""
    from tests.byte_tokenizer import byte_tokenizer

    config = LlamaConfig(
        vocab_size=264,
        hidden_size=d,
        intermediate_size=d_mlp,
        num_hidden_layers=n_blocks,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir()
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    block = {f"self_attn.{name}_proj.weight": torch.randn(d, d) / d**0.5 for name in "qkvo"}
    block |= {f"mlp.{name}_proj.weight": torch.randn(d_mlp, d) / d**0.5 for name in ("gate", "up")}
    block |= {"mlp.down_proj.weight": torch.randn(d, d_mlp) / d_mlp**0.5}
    block |= {f"{name}_layernorm.weight": torch.ones(d) for name in ("input", "post_attention")}
    rest = {"model.norm.weight": torch.ones(d)}
    rest |= {name: torch.randn(264, d) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    files = {"rest.safetensors": rest}
    for i in range(n_blocks):
        files[f"block-{i}.safetensors"] = {f"model.layers.{i}.{name}": tensor for name, tensor in block.items()}
    for name, tensors in files.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    shard_of = {tensor: name for name, tensors in files.items() for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return sum(tensor.numel() * tensor.element_size() for tensor in block.values())


def compressed(source: Path, out: Path, *, stream: bool) -> str:
    """Prune a checkpoint into another, and return the fingerprint of what it became."""
    from cola_lib.calibration import CalibrationSet
    from cola_lib.compress import compress, method_spec, save_checkpoint
    from cola_lib.models import load_model

    lm = load_model(source, device="cpu", stream=stream, scratch=out.parent)
    ids = torch.randint(3, 264, (2, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    rows = CalibrationSet(ids, mask, ((),) * 2, ("test",) * 2, "test", 0, "pack")
    report = compress(lm, method_spec("wanda"), rows, progress=False)
    save_checkpoint(lm, report, out)
    return report.model_after


def measured(folder: Path) -> dict[str, object]:
    """Stream first: the high-water mark only rises."""
    write_checkpoint(folder / "small", n_blocks=2, d=64, d_mlp=64)
    for how in (True, False):  # so that what is imported and built once is there already
        compressed(folder / "small", folder / f"small-{how}", stream=how)
    found: dict[str, object] = {"block": write_checkpoint(folder / "model")}
    for name in ("streamed", "whole"):
        gc.collect()
        before = resident("VmRSS")
        became = compressed(folder / "model", folder / name, stream=name == "streamed")
        found[name] = {"growth": resident("VmHWM") - before, "became": became}
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measured(Path(sys.argv[1]))) + "\n")
