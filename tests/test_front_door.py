"""The whole journey by the front door, as README and HOUSE show it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cola_lib as cola
from cola_lib.curation import Curated
from cola_lib.errors import DataError, SpecError
from cola_lib.models import load_model, tiny_model


def test_the_import_is_light_and_every_name_is_there():
    code = (
        "import sys, cola_lib as cola\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(cola.__all__) <= set(dir(cola))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in cola.__all__:
        assert callable(getattr(cola, name)), name
    with pytest.raises(AttributeError, match="no_such_verb"):
        cola.no_such_verb  # noqa: B018 - the look-up is the test


def test_five_verbs_do_the_whole_journey(tmp_path, monkeypatch, assets_dir):
    monkeypatch.chdir(tmp_path)
    tiny_model().save("tiny")

    lm = cola.load_model("tiny")
    rows = cola.calibration_set(["c4", "math"], lm, n_samples=4, seq_len=64)
    model = cola.compress(lm, cola.GPTQ(bits=3, act_order=True), rows, progress=False)
    model.save("gptq-3bit")
    found = cola.evaluate(model, tokens_per_capability=3000, capabilities=["math", "commonsense"], progress=False)

    assert model.report.calibration == (rows.fingerprint,) and model.notes == ()
    assert load_model("gptq-3bit").fingerprint == model.report.model_after
    assert set(found.summary().index) == {"math", "commonsense"}
    assert (found.summary()["bits_per_byte"] > 0).all()
    found.save("scores.json")

    made = cola.curate(cola.load_model("tiny"), cola.UniformMix(), ["c4", "math"], n_samples=2, seq_len=32, limit=8)
    made.save("set")
    assert cola.compress(cola.load_model("tiny"), cola.Wanda(), made, progress=False).report.sparsity == 0.5


def test_the_format_of_a_file_follows_the_method(tmp_path):
    lm = tiny_model()
    rounded = cola.compress(lm, cola.RTN(bits=8, group_size=-1, symmetric=True, act_bits=8), progress=False)
    written = rounded.save(tmp_path / "packed")
    assert written.format == "int-quantized"
    with pytest.raises(SpecError, match="ordinary checkpoint cannot say so"):
        rounded.save(tmp_path / "dense", format="dense")
    pruned = cola.compress(tiny_model(), cola.Magnitude(), progress=False)
    assert pruned.save(tmp_path / "pruned") is None and (tmp_path / "pruned" / "sparsity.json").is_file()
    with pytest.raises(SpecError, match="makes no integers"):
        pruned.save(tmp_path / "none", format="compressed-tensors")


def test_a_set_of_another_tokenizer_is_refused(tmp_path, assets_dir):
    lm = tiny_model()
    made = cola.curate(lm, "random", ["stories"], n_samples=2, seq_len=32, limit=8)
    other = Curated(made.rows, made.texts, dict(made.facts) | {"tokenizer": "another"})
    with pytest.raises(DataError, match="curate it again"):
        cola.compress(lm, cola.Wanda(), other, progress=False)
