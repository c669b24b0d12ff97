"""What users enter from their own code: it is found like what comes with the library, and held to the same rules."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from cola_lib import registry
from cola_lib.analysis import CLAIMS, Claim
from cola_lib.calibration import calibration_set, random_tokens_set
from cola_lib.compress import METHODS, PruneSpec, Solution, compress, method_spec
from cola_lib.curation import STRATEGIES
from cola_lib.data import SOURCES, EvaluationIndex, Sample, SourceInfo, load_samples
from cola_lib.errors import DataError, SpecError, UnknownNameError
from cola_lib.evaluate import source_suite
from cola_lib.models import byte_tokenizer, tiny_model

WORDS = " ".join(f"word{{0}}of{i}" for i in range(16))


@pytest.fixture(autouse=True)
def registries():
    """Forget afterwards what a test registered."""
    kept = [registry.REVISIONS, *(each._entries for each in (CLAIMS, METHODS, SOURCES, STRATEGIES))]
    before = [dict(entries) for entries in kept]
    yield
    for entries, known in zip(kept, before, strict=True):
        entries.clear()
        entries.update(known)


def enter(name: str, fraction: float, n: int = 40) -> list[Sample]:
    samples = [Sample(f"{name}-{i}", WORDS.format(i), name, language="en" if i % 2 else "de") for i in range(n)]
    SOURCES.register(SourceInfo(name, "", "mine", "mine", evaluation_fraction=fraction, read=lambda: samples))
    return samples


def test_a_source_is_divided_and_scored_as_the_packaged_ones_are():
    enter("halves", 0.5)
    parts = [{sample.id for sample in load_samples("halves", split)} for split in ("calibration", "evaluation")]
    assert min(map(len, parts)) >= 10 and not parts[0] & parts[1] and len(parts[0] | parts[1]) == 40
    suite = source_suite(byte_tokenizer(), {"mine": "halves"}, tokens_per_source=600)
    assert {item.id.rpartition("/")[2] for item in suite.items} <= parts[1] and len(suite.items) > 1


def test_questions_of_a_source_of_your_own_are_scored_as_choices():
    asked = [
        Sample(f"r{i}", f"riddle {i}", "riddles", question=f"What is {i}?", choices=("a number", "a fish"), gold=0)
        for i in range(20)
    ]
    SOURCES.register(SourceInfo("riddles", "", "mine", "mine", read=lambda: asked))
    suite = source_suite(byte_tokenizer(), {"mine": "riddles"}, tokens_per_source=400)
    assert {item.continuations for item in suite.items} == {(" a number", " a fish")}


def test_a_source_without_evaluation_half_gives_all_to_calibration():
    enter("whole", 0.0)
    assert len(load_samples("whole")) == 40
    with pytest.raises(DataError, match="'whole' is for calibration only"):
        load_samples("whole", "evaluation")


def test_filters_of_a_source_compare_its_samples():
    samples = [Sample(str(i), f"text {i}", "tongues", language="en" if i % 2 else "de") for i in range(6)]
    how = {"fields": {"tongue": "language"}, "evaluation_fraction": 0.0, "read": lambda: samples}
    SOURCES.register(SourceInfo("tongues", "", "mine", "mine", {"tongue": ("en", "de")}, **how))
    assert {sample.language for sample in load_samples("tongues:tongue=de")} == {"de"}
    with pytest.raises(UnknownNameError, match="'fr'"):
        load_samples("tongues:tongue=fr")


@pytest.mark.parametrize(
    ("name", "filters", "fields"),
    [
        ("c4", {}, None),
        ("a:b", {}, None),
        ("notes.txt", {}, None),
        ("", {}, None),
        ("fine", {"tongue": ("en",)}, None),
        ("fine", {}, {"tongue": "language"}),
    ],
)
def test_what_cannot_be_a_source_is_refused(name, filters, fields):
    with pytest.raises(SpecError):
        SOURCES.register(SourceInfo(name, "", "mine", "mine", filters, read=list, fields=fields or {}))


def test_a_source_of_your_own_is_compared_with_the_evaluation_items(monkeypatch):
    """As a file is: being registered does not make it one of ours, whose halves share no text."""
    samples = enter("leaky", 0.0)
    index = EvaluationIndex([Sample("q", "Question: " + samples[3].text, "exam")])
    monkeypatch.setattr(sys.modules["cola_lib.calibration.calibration_set"], "evaluation_index", lambda: index)
    size = {"n_samples": 2, "seq_len": 16}
    with pytest.raises(DataError, match="leaky"):
        calibration_set(["leaky"], byte_tokenizer(), **size)
    left = calibration_set(["leaky"], byte_tokenizer(), overlap="drop", **size)
    assert all(samples[3].id not in ids for ids in left.sample_ids)


def test_a_method_is_found_by_name_and_its_revision_names_its_results():
    @METHODS.register
    @dataclass(frozen=True)
    class Nothing(PruneSpec):
        method: ClassVar[str] = "nothing"
        revision: ClassVar[int] = 3
        power: float = 1.0

        def solve(self, problem):
            assert problem.statistics.gram.shape[0] == problem.weights[0].shape[1]
            return Solution(list(problem.weights))

    assert METHODS["nothing"] is Nothing
    spec = method_spec("nothing", sparsity=0.3)
    assert spec.label == "nothing 30%" and spec.key()["revisions"] == {"nothing": 3}
    lm = tiny_model()
    before = lm.fingerprint
    compress(lm, spec, random_tokens_set(lm.tokenizer, 2, 16), progress=False)
    assert lm.fingerprint == before
    # Only the method knows what it reads: all that a specification says counts, and all statistics are gathered.
    named = [method_spec("nothing", **options).key() for options in ({}, {"power": 0.5})]
    assert len({str(key) for key in named}) == 2
    compress(lm, spec, random_tokens_set(lm.tokenizer, 2, 16), progress=False, layer_errors=False)
    with pytest.raises(SpecError, match="already"):
        METHODS.register(Nothing)


def test_an_unknown_name_loads_installed_plugins(monkeypatch):
    class Point:
        value = "theirs"

        def load(self):
            SOURCES.register(SourceInfo("theirs", "", "theirs", "theirs", read=list))

    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: [Point()])
    registry.load_installed_plugins.cache_clear()
    assert SOURCES["theirs"].domain == "theirs"
    with pytest.raises(UnknownNameError, match="theirs"):
        SOURCES["thiers"]


def test_a_claim_has_an_id_and_a_unit_of_the_scorecard():
    assert CLAIMS.register(Claim("X9", "t", "t", "p")) is CLAIMS["X9"]
    with pytest.raises(SpecError, match="already"):
        CLAIMS.register(Claim("C1", "t", "t", "p"))
    with pytest.raises(UnknownNameError, match="unit"):
        CLAIMS.register(Claim("X10", "t", "t", "p", unit="furlongs"))


def test_a_plugin_is_loaded_once_and_by_child_processes(tmp_path, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, "")
    path = tmp_path / "mine.py"
    path.write_text("loaded = []\n")
    (first,) = registry.load_plugins([str(path)])
    (second,) = registry.load_plugins([str(path)])
    assert first is second and os.environ[registry.VARIABLE] == str(path)
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text("other = True\n")
    assert registry.load_plugin(str(other)) is not first


@pytest.mark.parametrize("text", ["1 / 0", "from cola_lib.data import nothing_of_the_kind"])
def test_a_plugin_that_fails_says_which_and_is_not_kept(tmp_path, text):
    path = tmp_path / "broken.py"
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(registry.PluginError, match="broken.py: (ZeroDivisionError|ImportError)"):
            registry.load_plugin(str(path))
    with pytest.raises(registry.PluginError, match="no such file"):
        registry.load_plugin(str(tmp_path / "missing.py"))
