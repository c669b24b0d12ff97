"""The same numbers on a GPU as on the CPU."""

from __future__ import annotations

import pytest
import torch

from cola_lib.compress import METHODS, compress, method_spec, save_checkpoint
from cola_lib.models import load_model
from cola_lib.statistics import collect_statistics
from tests.byte_tokenizer import byte_tokenizer
from tests.test_compress_model import STRENGTH, linear_weights
from tests.test_walk import rows
from tests.tiny_models import tiny_language_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def on_gpu(model_type):
    lm = tiny_language_model(model_type)
    lm.model.to("cuda")
    return lm


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3", "olmo2"])
def test_statistics(model_type):
    calibration = rows((12, 7, 12, 3))
    ours = collect_statistics(on_gpu(model_type), calibration, progress=False)
    theirs = collect_statistics(tiny_language_model(model_type), calibration, progress=False)
    for key, stats in ours.items():
        assert stats.gram.is_cuda
        torch.testing.assert_close(stats.gram.cpu(), theirs[key].gram, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["wanda", "gptq", "awq"])
def test_streamed_blocks_are_solved_on_the_gpu_and_wait_in_main_memory(tmp_path, method):
    spec = method_spec(method, **STRENGTH[method])
    tiny_language_model("llama").model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    options = {"device": "cuda", "dtype": "float32"}
    whole = load_model(tmp_path / "model", **options)
    streamed = load_model(tmp_path / "model", stream=True, scratch=tmp_path, **options)
    assert streamed.device.type == "cuda" and streamed.home.type == "cpu"
    assert streamed.fingerprint == whole.fingerprint
    for name, lm in (("whole", whole), ("streamed", streamed)):
        save_checkpoint(lm, compress(lm, spec, rows((12, 7, 12, 12)), progress=False), tmp_path / name)
    a, b = (linear_weights(load_model(tmp_path / name, device="cpu")) for name in ("whole", "streamed"))
    for name, weight in a.items():
        # Embedded on the CPU: float32 rounding may move a weight over a threshold, and hardly any may.
        assert torch.isclose(weight, b[name], rtol=1e-2, atol=1e-3).float().mean() > 0.98, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("propagate", ["original", "compressed"])
def test_methods(method, propagate):
    spec = method_spec(method, **STRENGTH[method])
    gpu, cpu = on_gpu("llama"), tiny_language_model("llama")
    a = compress(gpu, spec, rows((12,) * 8), propagate=propagate, progress=False)
    b = compress(cpu, spec, rows((12,) * 8), propagate=propagate, progress=False)
    for name, weight in linear_weights(gpu).items():
        other = linear_weights(cpu)[name]
        # Float32 rounding may move a weight over a threshold; hardly any may.
        same = torch.isclose(weight.cpu(), other, rtol=1e-2, atol=1e-3).float().mean()
        assert same > 0.98, name
    assert a.sparsity == pytest.approx(b.sparsity, abs=1e-3)
