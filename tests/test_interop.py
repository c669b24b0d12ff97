"""The real llm-compressor and GPTQModel, each in its own environment, on sets that we wrote: `make interop`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cola_lib.calibration import calibration_set
from cola_lib.compress import compress, method_spec, restored
from cola_lib.curation import for_gptqmodel, for_llmcompressor, read_dataset, write_dataset
from cola_lib.curation.dataset import curated
from cola_lib.experiments import OutsideRecipe
from cola_lib.experiments.outside import run_llmcompressor
from cola_lib.models import load_model
from cola_lib.statistics import collect_statistics
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[1]
SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": "",
    "GPTQMODEL_CPU_WORKERS": "2",  # on two cores it needs to be told
    "GPTQMODEL_DISABLE_PACK_EXT": "1",  # packs in Python, instead of compiling C++ first
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, smollm2_tokenizer):
    folder = tmp_path_factory.mktemp("tiny")
    special = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    model = tiny_model("llama", vocab_size=len(smollm2_tokenizer), max_position_embeddings=512, **SHAPE, **special)
    for parameter in model.parameters():
        parameter.data *= 0.3  # half precision is enough for the outputs
    model.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm2_tokenizer):
    rows = calibration_set(["gsm8k", "stories"], smollm2_tokenizer, n_samples=40, seq_len=32, seed=3)
    made = curated(rows, smollm2_tokenizer, {"strategy": "random", "options": {}})
    return write_dataset(made, tmp_path_factory.mktemp("sets") / "set")


def run_tool(tool: str, *arguments: Path) -> dict:
    python = ROOT / ".venv-interop" / tool / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python.relative_to(ROOT)} is missing; `make interop` makes it")
    script = ROOT / "interop" / f"run_{tool}.py"
    environment = os.environ | ENVIRONMENT | {"HF_DATASETS_CACHE": str(arguments[-1] / "cache")}
    done = subprocess.run(
        [python, script, *arguments], cwd=arguments[-1], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads((arguments[-1] / "facts.json").read_text())


def by_tool(found: dict) -> torch.Tensor:
    """Outputs after the last token of two rows, as the tool computed them with the model that it had saved."""
    return torch.tensor(found["logits"])


def assert_each_row_once_in_order(seen: list[list[int]], rows: list[list[int]]) -> None:
    """A tool may go through the rows more than once, but through all of them, as they are, in order."""
    assert len(seen) % len(rows) == 0 and seen
    # compared before they are asserted: pytest takes minutes to print lists of this length
    same = all(seen[start : start + len(rows)] == rows for start in range(0, len(seen), len(rows)))
    assert same


def _ids(given: dict) -> torch.Tensor:
    return torch.cat([batch["input_ids"] for batch in given["dataset"]])


def test_llmcompressor_sees_our_rows_in_our_order(checkpoint, folder, tmp_path):
    rows = read_dataset(folder).rows
    found = run_tool("llmcompressor", checkpoint, folder, tmp_path)
    assert_each_row_once_in_order(found["seen"], [row.tolist() for row in _ids(for_llmcompressor(rows))])
    # What it saved is what we write too: our environment's transformers loads it, and computes the same.
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")(rows.input_ids[:2]).logits
    torch.testing.assert_close(logits[:, -1].float(), by_tool(found), rtol=1e-3, atol=1e-3)


def test_gptqmodel_sees_our_rows_in_our_order(checkpoint, folder, tmp_path):
    rows = read_dataset(folder).rows
    found = run_tool("gptqmodel", checkpoint, folder, tmp_path)
    assert_each_row_once_in_order(found["seen"], [row["input_ids"] for row in for_gptqmodel(rows)["calibration"]])
    with torch.no_grad():
        dense = AutoModelForCausalLM.from_pretrained(checkpoint)(rows.input_ids[:2]).logits[:, -1]
    assert (by_tool(found) - dense).norm() / dense.norm() < 0.5


def test_llmcompressor_rounds_as_well_on_our_set_as_we_do(checkpoint, folder, tmp_path):
    """Two GPTQs on one set: layer by layer of the first block, which both read through untouched layers."""
    lm, rows = load_model(checkpoint, device="cpu"), read_dataset(folder).rows
    statistics = collect_statistics(lm, rows, progress=False)
    block, prefix = lm.blocks[0], lm.block_name(0)
    before = {layer: block.get_submodule(layer).weight.clone() for layer in lm.architecture.layers}
    recipe = OutsideRecipe(bits=3, group_size=32, symmetric=False, act_order=True, damp=0.01)
    (tmp_path / "model").symlink_to(checkpoint)
    (tmp_path / "set").symlink_to(folder)
    run_llmcompressor(ROOT / ".venv-interop" / "llmcompressor" / "bin" / "python", tmp_path, recipe)
    theirs = load_file(tmp_path / "out" / "model.safetensors")
    spec = method_spec("gptq", bits=3, group_size=32, act_order=True, static_groups=True)
    for name, options in (("ours", spec), ("nearest", method_spec("rtn", bits=3, group_size=32))):
        with restored(lm):
            report = compress(lm, options, statistics=statistics if options.calibrated else None, progress=False)
            if name == "ours":
                ours = {r.layer: r.output_error for r in report.layers}
            else:
                nearest = {layer: block.get_submodule(layer).weight.clone() for layer in before}
    for group in lm.architecture.groups:
        stats = statistics[0, group.name]
        for layer in group.layers:
            name, W = f"{prefix}.{layer}", before[layer]
            error = stats.output_energy(theirs[f"{name}.weight"] - W) / stats.output_energy(W)
            by_rtn = stats.output_energy(nearest[layer] - W) / stats.output_energy(W)
            values = theirs[f"{name}.weight"].reshape(len(W), -1)
            assert max(len(row.unique()) for row in values) < W.shape[1], name  # it did round
            assert ours[name] < by_rtn and ours[name] < 1.1 * error, (name, ours[name], error, by_rtn)
