"""Stored results are found by what they were made from: these names must outlive every change of the code."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cola_lib import curation
from cola_lib.calibration import calibration_set
from cola_lib.compress import METHODS, method_spec
from cola_lib.curation import STRATEGIES
from cola_lib.evaluate import capability_suite
from cola_lib.experiments import cell_key
from cola_lib.experiments.cells import CellKey
from cola_lib.fingerprint import fingerprint
from cola_lib.registry import revisions

ROOT = Path(__file__).parents[1]
EVIDENCE = {"evidence/cells.parquet": 1038, "evidence/confirmation/cells.parquet": 24}
SIZE = {"seq_len", "n_samples", "n_tokens", "seed"}
"""What the key of a choice holds beside the strategy's own."""

SPECS = [
    ("magnitude", {}, "b9aaf5683424a748c51b"),
    ("magnitude", {"pattern": "2:4"}, "d4c7f71fb3b0d3513acb"),
    ("wanda", {}, "2507a6e23caa49b08022"),
    ("wanda", {"sparsity": 0.3}, "6b715fb2500ebc567cb2"),
    ("ria", {}, "98416dd35042ab9a8ddf"),
    ("ria", {"exponent": 0.0}, "a3b2277348a89c136b28"),
    ("sparsegpt", {}, "ea822c41414b9a2dcfc9"),
    ("sparsegpt", {"damp": 0.1, "pattern": "4:8"}, "a62fd8ee57d1fb313e9a"),
    ("rtn", {}, "ce00db788f4b71db1f36"),
    ("rtn", {"bits": 8, "act_bits": 8, "act_strategy": "tensor"}, "92993f7b16c046147ef4"),
    ("gptq", {}, "b2f26567c4bb8723762b"),
    ("gptq", {"bits": 3, "act_order": True, "damp": 0.1}, "efd7a91fbb5c5638a6c2"),
    ("gptq", {"keep_zeros": True, "static_groups": True}, "7d3aca320a0df4e34a72"),
    ("gptq", {"act_bits": 8, "group_size": 64, "symmetric": True}, "2e4afafdd6cf5ca6e618"),
    ("awq", {}, "2e0db26c5d3e71848756"),
    ("awq", {"bits": 3, "n_grid": 10}, "24353599f107070141cd"),
    ("awq", {"duo_scaling": True, "clip": False}, "ee4cc70607b5594457a5"),
    ("smoothquant", {}, "c3c6a59c86a42d054f56"),
    ("smoothquant", {"alpha": 0.8, "smooth": "norms", "act_strategy": "tensor"}, "9e611580602ecf21d440"),
    ("joint_lowrank", {}, "b1d4cc6b478321e054ad"),
    ("joint_lowrank", {"keep": 0.5}, "2280778628f547946315"),
]
STRATEGY_KEYS = {
    "cola": "d3299e681b23eafe4c74",
    "centroid_distance": "c40c50b434710cb8f04f",
    "outlier_cover": "ac28714fcf5912b0835d",
    "spectral_volume": "eb8de5eb5a7e1fb85c8d",
    "random": "d33420b9acee7a56f7ff",
    "uniform_mix": "fa8f14ca5dc8984e8f7f",
    "shuffled_words": "04e8233fc2e6356b03a9",
    "random_tokens": "479469c41ac0ad8276f9",
    "perplexity": "6040e5ece3f201a974a1",
    "tfidf_clusters": "c606135458bc19e4db14",
    "zipcal": "77aec1fd2e41594ea8b0",
    "length_mixture": "ec43591712a66d00558c",
    "information_mix": "0341f5e011f20f89d5b6",
    "self_generated": "a20ac057eee3dc664f7d",
    "self_calibrated": "acab9b1e17837c5c2f35",
    "proxy": "b3c7f0bc332887c5e415",
}


def spec_today(stored: dict) -> tuple[dict, bool]:
    """Make a stored method's key from its options, as the code computes it now; and whether it reads data."""
    options = {name: value for name, value in stored.items() if name not in ("method", "revisions", "tuned")}
    if options.get("pattern") is not None:
        options["pattern"] = tuple(options["pattern"])
    spec = method_spec(stored["method"], **options)
    tuned = {"tuned": stored["tuned"] | revisions("finetune")} if "tuned" in stored else {}
    return spec.key() | tuned, spec.calibrated


def strategy_today(stored: dict) -> dict:
    """Make a stored strategy's key from its options, as the code computes it now."""
    options = {name: value for name, value in stored.items() if name not in {"strategy", "revision", *SIZE}}
    chooser = curation.strategy(stored["strategy"], **options)
    key = chooser.key()
    assert stored.get("revision", 1) <= key.get("revision", 1)
    if stored.get("revision", 1) < key.get("revision", 1):
        del key["revision"]  # what an earlier revision chose is stored still, and not read
    return key | {name: stored[name] for name in SIZE}


def key_today(stored: CellKey) -> CellKey:
    """Make a cell's key again from its parts."""
    whole = {"model": stored.model, "calibration": stored.calibration, "targets": stored.targets}
    if stored.suite == "activations":
        return CellKey(
            suite="activations", spec=None, propagate=None, revisions=revisions("activations", "walk"), **whole
        )
    if stored.suite == "selection":
        known = revisions("curate", "split", "tokenize")
        return CellKey(
            suite="selection", spec=strategy_today(dict(stored.spec)), propagate=None, revisions=known, **whole
        )
    spec, calibrated = spec_today(dict(stored.spec)) if stored.spec is not None else (None, False)
    return cell_key(
        suite=stored.suite,
        spec=spec,
        calibrated=calibrated,
        propagate=stored.propagate,
        eval_dtype=stored.eval_dtype,
        **whole,
    )


@pytest.mark.parametrize("path", EVIDENCE)
def test_every_stored_cell_is_found_under_its_key(path):
    table = pq.read_table(ROOT / path, columns=["key", "about"])
    assert len(table) >= EVIDENCE[path]  # evidence grows
    kinds = set()
    for name, about in zip(table["key"].to_pylist(), table["about"].to_pylist(), strict=True):
        key = CellKey(**json.loads(about)["key"])
        kinds.add(key.suite if key.suite in ("activations", "selection") else "scores")
        if key.suite in ("activations", "selection") or not key.outdated:
            assert key_today(key).fingerprint == name, key
    assert "scores" in kinds


@pytest.mark.parametrize(("method", "options", "known"), SPECS)
def test_the_key_of_a_method_stays(method, options, known):
    assert fingerprint(method_spec(method, **options).key()) == known


def test_keys_of_all_methods_and_strategies_are_pinned():
    assert {method for method, _, _ in SPECS} == set(METHODS)
    assert set(STRATEGY_KEYS) == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGY_KEYS)
def test_the_key_of_a_strategy_stays(name):
    assert fingerprint(STRATEGIES[name]().key()) == STRATEGY_KEYS[name]


def test_sets_and_suites_are_those_that_the_evidence_was_computed_on(smollm2_tokenizer):
    """Chapter 2's, of some sources. It divides them into one draw more than it uses: that one is the target."""
    table = pq.read_table(ROOT / "evidence/cells.parquet", columns=["about"])
    cells = [json.loads(about) for about in table["about"].to_pylist()]
    suite = capability_suite(smollm2_tokenizer, tokens_per_capability=2400, balance="items", choices="all")
    stored = {
        (cell["labels"]["source"], cell["labels"]["draw"]): cell["key"]["calibration"]
        for cell in cells
        if cell["key"]["suite"] == suite.fingerprint
        and (cell["labels"].get("n_samples"), cell["labels"].get("seq_len")) == (32, 256)
        and cell["labels"]["layout"] == "pack"
    }
    for source in ("stories", "math"):
        for draw in range(3):
            made = calibration_set([source], smollm2_tokenizer, n_samples=32, seq_len=256, draw=draw, n_draws=4)
            assert stored[source, draw] == made.fingerprint
