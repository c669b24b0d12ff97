"""A model that is streamed block by block becomes exactly what it becomes in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cola_lib.compress import METHODS, compress, method_spec, restored, save_checkpoint
from cola_lib.errors import ColaError, NumericsError, OutputError, SpecError
from cola_lib.export import export_quantized, export_sparse, sparsity_of
from cola_lib.models import load_model
from cola_lib.statistics import collect_statistics
from tests.byte_tokenizer import byte_tokenizer
from tests.memory_of_compression import N_BLOCKS
from tests.test_cli import assert_refused, no_work, run  # noqa: F401 - a fixture
from tests.test_compress_model import STRENGTH
from tests.test_walk import rows
from tests.tiny_models import MODEL_TYPES, tiny_model

ROOT = Path(__file__).parents[1]


def write(folder, model_type="llama", *, shards=False, tied=False, dtype=torch.float32, **shape):
    model = tiny_model(model_type, **shape).to(dtype)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(folder, max_shard_size="20kB" if shards else "1GB")
    byte_tokenizer().save_pretrained(folder)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tensors_of(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def both(folder, scratch, **options):
    return load_model(folder, **options), load_model(folder, stream=True, scratch=scratch, **options)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("method", ["awq", "sparsegpt"])
def test_every_kind_of_model_streams(tmp_path, model_type, method):
    source = write(tmp_path / "model", model_type)
    whole, streamed = both(source, tmp_path / "scratch")
    assert streamed.fingerprint == whole.fingerprint
    spec = method_spec(method, **STRENGTH[method])
    one = compress(whole, spec, rows((12, 7, 12)), progress=False)
    two = compress(streamed, spec, rows((12, 7, 12)), progress=False)
    assert one.model_before == two.model_before and one.model_after == two.model_after
    assert [layer.output_error for layer in one.layers] == [layer.output_error for layer in two.layers]


def test_a_streamed_model_rounds_its_activations_too(tmp_path):
    source = write(tmp_path / "model")
    whole, streamed = both(source, tmp_path / "scratch")
    for lm in (whole, streamed):
        report = compress(lm, method_spec("smoothquant"), rows((12,) * 8), progress=False)
    assert streamed.input_rounding == whole.input_rounding and whole.input_rounding
    assert streamed.fingerprint == whole.fingerprint
    with pytest.raises(SpecError, match="round their inputs"):
        save_checkpoint(streamed, report, tmp_path / "out")


@pytest.mark.parametrize("propagate", ["compressed", "original"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "smoothquant"])  # it is not written dense
def test_the_folders_hold_the_same_numbers(tmp_path, method, propagate):
    source = write(tmp_path / "model", shards=True)
    before = contents(source)
    spec = method_spec(method, **STRENGTH.get(method, {}))
    reports = []
    for name, lm in zip(("whole", "streamed"), both(source, tmp_path / "scratch"), strict=True):
        reports.append(compress(lm, spec, rows((12,) * 8), propagate=propagate, progress=False))
        save_checkpoint(lm, reports[-1], tmp_path / name)
    one, two = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "streamed")
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert reports[0].model_after == reports[1].model_after == load_model(tmp_path / "streamed").fingerprint
    assert contents(source) == before


def test_generation_settings_may_be_missing(tmp_path):
    source = write(tmp_path / "model")
    (source / "generation_config.json").unlink(missing_ok=True)
    load_model(source, stream=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_transformers_loads_what_was_streamed(tmp_path, tied, dtype):
    source = write(tmp_path / "model", "qwen2", tied=tied, dtype=dtype)
    settings = {"max_new_tokens": 7, "do_sample": True, "temperature": 0.25}
    (source / "generation_config.json").write_text(json.dumps(settings))
    whole, streamed = both(source, tmp_path / "scratch", dtype=dtype)
    for name, lm in (("whole", whole), ("streamed", streamed)):
        report = compress(lm, method_spec("awq", **STRENGTH["awq"]), rows((12,) * 8), progress=False)
        save_checkpoint(lm, report, tmp_path / name)
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto") for name in ("whole", "streamed"))
    assert a.dtype == b.dtype == dtype
    assert b.config.to_diff_dict() == a.config.to_diff_dict() and b.generation_config.temperature == 0.25
    ids = rows(seed=9).input_ids
    torch.testing.assert_close(b(input_ids=ids).logits, a(input_ids=ids).logits, rtol=0, atol=0)
    assert (b.lm_head.weight is b.model.embed_tokens.weight) == tied
    assert AutoTokenizer.from_pretrained(tmp_path / "streamed")("a b").input_ids == byte_tokenizer()("a b").input_ids
    index = json.loads((tmp_path / "streamed" / "model.safetensors.index.json").read_text())
    held = {}
    for path in (tmp_path / "streamed").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            held |= dict.fromkeys(file.keys(), path.name)
    assert index["weight_map"] == held and len(set(held.values())) == 4
    assert ("lm_head.weight" in held) != tied
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(tmp_path / "streamed").values())
    assert index["metadata"]["total_size"] == size
    assert list((tmp_path / "scratch").iterdir()) != []
    del lm, streamed
    assert list((tmp_path / "scratch").iterdir()) == []


def test_one_block_is_in_memory_at_a_time(tmp_path):
    lm = load_model(write(tmp_path / "model"), stream=True, scratch=tmp_path)
    seen = []

    def loaded():
        return [i for i, block in enumerate(lm.blocks) if not any(p.is_meta for p in block.parameters())]

    for block in lm.blocks:
        block.mlp.register_forward_pre_hook(lambda *_: seen.append(loaded()))
    compress(lm, method_spec("wanda"), rows(), progress=False)
    assert seen == [[0], [0], [1], [1], [2]]
    assert loaded() == [] and not lm.model.get_input_embeddings().weight.is_meta


def test_statistics_are_those_of_the_whole_model(tmp_path):
    whole, streamed = both(write(tmp_path / "model", "gemma2"), tmp_path)
    one, two = (collect_statistics(lm, rows((12, 5, 9)), progress=False) for lm in (whole, streamed))
    assert one.model == two.model
    assert all(torch.equal(one[key].gram, two[key].gram) for key in one)
    spec = method_spec("sparsegpt", **STRENGTH["sparsegpt"])
    a = compress(whole, spec, statistics=one, targets={"same": one}, progress=False)
    b = compress(streamed, spec, statistics=two, targets={"same": two}, progress=False)
    assert a.model_after == b.model_after and a.layers[5].target_error == b.layers[5].target_error


def test_a_streamed_model_is_put_back_like_any_other(tmp_path):
    lm = load_model(write(tmp_path / "model"), stream=True, scratch=tmp_path / "scratch")
    known = lm.fingerprint
    with restored(lm):
        first = compress(lm, method_spec("wanda"), rows(), progress=False)
        again = compress(lm, method_spec("rtn", group_size=16), progress=False)
        assert known != first.model_after == again.model_before != again.model_after
    assert lm.fingerprint == known
    assert compress(lm, method_spec("wanda"), rows(), progress=False).model_after == first.model_after


def test_after_an_error_the_model_is_as_it_was(tmp_path):
    source = write(tmp_path / "model")
    tensors = tensors_of(source)
    tensors["model.layers.2.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    lm = load_model(source, stream=True, scratch=tmp_path / "scratch")
    known = lm.fingerprint
    with pytest.raises(NumericsError, match=r"layers\.2\.mlp\.down_proj: its weight"):
        compress(lm, method_spec("wanda"), rows(), progress=False)
    assert lm.fingerprint == known and list((tmp_path / "scratch").iterdir()) == []
    assert all(p.is_meta for p in lm.blocks[2].parameters())


def test_a_pruned_model_is_counted_as_it_is_written(tmp_path):
    whole, streamed = both(write(tmp_path / "model"), tmp_path / "scratch")
    spec = method_spec("wanda", pattern="2:4")
    for name, lm in (("whole", whole), ("streamed", streamed)):
        export_sparse(lm, compress(lm, spec, rows(), progress=False), tmp_path / name)
    assert sparsity_of(streamed) == sparsity_of(whole)
    assert (tmp_path / "streamed" / "sparsity.json").read_text() == (tmp_path / "whole" / "sparsity.json").read_text()


def test_an_unchanged_model_can_be_saved(tmp_path):
    source = write(tmp_path / "model")
    load_model(source, stream=True).save(tmp_path / "copy")
    assert load_model(tmp_path / "copy").fingerprint == load_model(source).fingerprint


def test_what_only_a_whole_model_can_do_is_said(tmp_path):
    lm = load_model(write(tmp_path / "model"), stream=True, scratch=tmp_path)
    with pytest.raises(ColaError, match=r"model\.layers\.0 of a streamed model is not in memory: only the walk"):
        lm.model(input_ids=rows().input_ids)
    with pytest.raises(SpecError, match="keep_codes.*streamed"):
        compress(lm, method_spec("rtn", group_size=16), keep_codes=True, progress=False)
    report = compress(lm, method_spec("rtn", group_size=16), progress=False)
    with pytest.raises(SpecError, match="streamed"):
        export_quantized(lm, report, tmp_path / "packed")


def test_a_checkpoint_whose_names_transformers_translates_is_streamed_once_it_is_saved(tmp_path):
    source = write(tmp_path / "model")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors_of(source).items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ColaError, match="load it whole, save it"):
        load_model(source, stream=True)
    whole = load_model(source)
    whole.save(tmp_path / "saved")
    assert load_model(tmp_path / "saved", stream=True).fingerprint == whole.fingerprint


def test_a_full_scratch_folder_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    lm = load_model(write(tmp_path / "model"), stream=True, scratch=tmp_path / "file")
    known = lm.fingerprint
    with pytest.raises(OutputError, match=r"model\.layers\.0 could not be written there"):
        compress(lm, method_spec("rtn", group_size=16), progress=False)
    assert lm.fingerprint == known


@pytest.mark.parametrize("method", ["magnitude", "rtn"])
def test_the_command_line_streams(tmp_path, method):
    source = write(tmp_path / "model")
    for name, how in (("whole", ()), ("streamed", ("--stream",))):
        result = run("compress", "--model", source, "--method", method, "--out", tmp_path / name, "--json", *how)
        assert result.exit_code == 0, result.output
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "streamed")]
    assert reports[0]["model_after"] == reports[1]["model_after"] == load_model(tmp_path / "streamed").fingerprint
    assert (tmp_path / "streamed" / "sparsity.json").exists() == (method == "magnitude")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "whole", "streamed"}, "no scratch file is left"


def test_a_streamed_model_is_not_packed_and_that_is_said_at_once(tmp_path, no_work):  # noqa: F811
    packed = ("--method", "rtn", "--save-as", "compressed-tensors", "--stream")
    result = run("compress", "--model", "m", "--out", tmp_path / "out", *packed)
    assert_refused(result, "leave out --stream")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the resident set where Linux keeps it")
def test_streaming_takes_the_memory_of_few_blocks(tmp_path):
    # Large tensors go back to the system when they are freed, so that the mark is that of what is held.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.memory_of_compression", tmp_path]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    streamed, whole = (found[name]["growth"] / found["block"] for name in ("streamed", "whole"))
    assert whole > N_BLOCKS
    # The block, its new weights, its Gram matrices (0.9 of a block here) and what solving its widest layer takes. In
    # memory, the model and its new weights are there together.
    assert streamed < 6
    assert found["streamed"]["became"] == found["whole"]["became"]
