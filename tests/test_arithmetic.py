"""Float32 products: the faster backend where it is one, and never less than float32."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from cola_lib import arithmetic
from cola_lib.arithmetic import DEFAULT, ONEDNN, TOLERANCE, Products, fast_products, measured_products
from cola_lib.calibration import random_tokens_set
from cola_lib.cli import app
from cola_lib.compress import compress, method_spec
from cola_lib.evaluate import EvalItem, Suite, evaluate
from cola_lib.models import tiny_model
from cola_lib.statistics import collect_statistics

SUITE = Suite((EvalItem("1", "language", "proverbs", "Still waters", (" run deep.",)),))


@pytest.fixture
def precision(monkeypatch):
    """What oneDNN's products may do at each product that torch computes, as the hooks below see it."""
    seen: list[str] = []
    real = torch.nn.functional.linear

    def linear(*args, **kwargs):
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    return seen


def choose(monkeypatch, backend: str) -> None:
    products = Products(backend, {DEFAULT: 100.0, ONEDNN: 200.0}, {DEFAULT: 1e-7, ONEDNN: 1e-7})
    monkeypatch.setattr(arithmetic, "measured_products", lambda: products)


def test_the_chosen_product_is_float32_whatever_the_machine():
    X, W = torch.randn(300, 576), torch.randn(700, 576)
    with fast_products():
        found = X @ W.T
    exact = X.double() @ W.double().T
    assert float((found.double() - exact).abs().max() / exact.abs().max()) < 1e-5
    assert measured_products().error[measured_products().backend] < TOLERANCE


def test_this_torch_has_the_switch():
    assert arithmetic.onednn_permission(), "torch has dropped mkldnn.matmul.fp32_precision: find oneDNN another way"


@pytest.mark.parametrize(
    ("rates", "errors", "expected"),
    [
        ((100, 220), (2e-7, 4e-7), ONEDNN),
        ((100, 120), (2e-7, 4e-7), DEFAULT),  # noise could have decided
        ((100, 900), (2e-7, 2e-3), DEFAULT),  # matrix tiles that round inputs to bfloat16
    ],
)
def test_a_backend_is_taken_if_it_is_faster_and_no_less_exact(monkeypatch, rates, errors, expected):
    probes = iter(zip(rates, errors, strict=True))
    monkeypatch.setattr(arithmetic, "_probe", lambda X, W: next(probes))
    assert measured_products.__wrapped__().backend == expected


def test_without_the_switch_the_default_is_left(monkeypatch):
    monkeypatch.setattr(arithmetic, "onednn_permission", lambda: False)
    assert measured_products.__wrapped__().backend == DEFAULT


@pytest.mark.parametrize(("backend", "expected"), [(ONEDNN, "bf16"), (DEFAULT, "none")])
def test_walk_and_evaluation_compute_with_it_and_leave_no_trace(monkeypatch, precision, backend, expected):
    choose(monkeypatch, backend)
    lm = tiny_model()
    rows = random_tokens_set(lm.tokenizer, 2, 16)
    for run in (
        lambda: collect_statistics(lm, rows, progress=False),
        lambda: evaluate(lm, SUITE, progress=False),
    ):
        precision.clear()
        run()
        assert set(precision) == {expected}
        assert torch.backends.mkldnn.matmul.fp32_precision == "none"
        torch.get_float32_matmul_precision()  # raises where the switch is left on


def test_a_precision_of_the_callers_own_stays(monkeypatch):
    choose(monkeypatch, ONEDNN)
    matmul = torch.backends.mkldnn.matmul
    matmul.fp32_precision = "ieee"
    try:
        with fast_products():
            assert matmul.fp32_precision == "ieee"
    finally:
        matmul.fp32_precision = "none"


def test_an_error_inside_leaves_no_trace(monkeypatch):
    choose(monkeypatch, ONEDNN)
    with pytest.raises(ZeroDivisionError), fast_products():
        raise ZeroDivisionError
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_reports_say_which_product_computed():
    lm = tiny_model()
    report = compress(lm, method_spec("wanda", sparsity=0.5), random_tokens_set(lm.tokenizer, 2, 16), progress=False)
    assert report.to_dict()["products"] == measured_products().backend
    shown = CliRunner().invoke(app, ["--version", "--verbose"])
    assert shown.exit_code == 0 and "float32 products" in shown.output and "torch" in shown.output
    assert CliRunner().invoke(app, ["--version"]).output.startswith("cola-lib ")
