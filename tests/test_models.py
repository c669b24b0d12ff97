"""Loading by name, by path, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from cola_lib.errors import ColaError, SpecError, UnknownNameError
from cola_lib.models import load_model, resolve_device, resolve_dtype
from tests.byte_tokenizer import byte_tokenizer
from tests.tiny_models import tiny_language_model, tiny_model


@pytest.fixture
def folder(tmp_path):
    tiny_model("qwen2").save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_checkpoint_loads_ready_for_use(folder):
    lm = load_model(folder)
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())
    assert lm.architecture.model_type == "qwen2"
    assert [lm.block_name(i) for i in range(len(lm.blocks))] == [f"model.layers.{i}" for i in range(3)]
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_the_fingerprint_is_that_of_the_content(folder):
    lm = load_model(folder)
    assert lm.fingerprint == load_model(folder).fingerprint
    other = load_model(folder)
    other.blocks[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    assert other.fingerprint != lm.fingerprint


@pytest.mark.parametrize(
    "model_type,setting",
    [
        ("qwen2", {"rms_norm_eps": 1e-3}),
        ("granite", {"attention_multiplier": 0.5}),
        ("granite", {"residual_multiplier": 0.5}),
        ("granite", {"logits_scaling": 2.0}),
        ("gemma2", {"query_pre_attn_scalar": 8}),
        ("olmo", {"clip_qkv": 0.1}),
        ("smollm3", {"no_rope_layers": [0, 0, 0]}),
    ],
)
def test_two_models_of_the_same_weights_that_compute_other_things_have_two_fingerprints(model_type, setting):
    one, other = tiny_language_model(model_type), tiny_language_model(model_type, **setting)
    ids = torch.arange(3, 12)[None]
    for here, there in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(here, there)
    assert not torch.allclose(one.model(input_ids=ids).logits, other.model(input_ids=ids).logits)
    assert one.fingerprint != other.fingerprint


def test_two_models_whose_tokenizers_read_otherwise_have_two_fingerprints(folder):
    lm = load_model(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    path.write_text(json.dumps(content))
    other = load_model(folder)
    assert other.tokenizer.get_vocab() == lm.tokenizer.get_vocab()
    assert other.fingerprint != lm.fingerprint


def test_the_embedded_model_is_loaded_by_its_name(assets_dir):
    lm = load_model("smollm2-135m")
    assert len(lm.blocks) == 30 and lm.blocks[0].mlp.down_proj.in_features == 1536
    ids = lm.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert lm.tokenizer.decode(lm.model(input_ids=ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.parametrize(
    "name,message",
    [
        ("smollm2-135", "nearest: smollm2-135m"),
        ("./nowhere", "unknown model './nowhere'"),
        ("a/b/c", "unknown model 'a/b/c'"),
    ],
)
def test_unknown_models(name, message):
    with pytest.raises(UnknownNameError, match=message):
        load_model(name)


def test_what_is_no_checkpoint_is_refused(tmp_path, folder):
    with pytest.raises(ColaError, match=r"no config\.json there"):
        load_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ColaError, match=r"is quantized already \(gptq\)"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gemma3"}))
    with pytest.raises(UnknownNameError, match=r"unknown model type 'gemma3'; nearest: .*gemma3_text"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ColaError, match=r"could not be loaded from"):
        load_model(folder)


def test_devices_and_dtypes():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(SpecError, match="not a torch device"):
        resolve_device("gpu0")
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(UnknownNameError, match="nearest: float32"):
        resolve_dtype("flot32", torch.device("cpu"))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match="sees no CUDA device"):
        resolve_device("cuda")
