"""The same numbers on a GPU as on the CPU."""

from __future__ import annotations

import pytest
import torch

from cola_lib.compress import METHODS, compress, method_spec
from cola_lib.statistics import collect_statistics
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
