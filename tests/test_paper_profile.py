"""The paper's own setting: its configuration is sound, and its path runs on files laid out as the hub's are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cola_lib import book
from cola_lib.data import load_samples
from cola_lib.data.external import parse_hub_name
from cola_lib.data.layouts import as_question
from cola_lib.errors import ColaError, DataError, UnknownNameError
from cola_lib.experiments import Experiment, as_spec
from tests.tiny_models import tiny_model

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PROFILE = book.read_profile("paper", NOTEBOOKS / "profiles")
HUB_ID = r"[\w.-]+/[\w.-]+"


def runs(tmp_path):
    return book.plan([], folder=NOTEBOOKS, out=tmp_path, profile=PROFILE)


def named(parameters, suffix):
    """All source or method lists of a notebook, however deep."""
    found = []
    for key, value in parameters.items():
        if key.endswith(suffix):
            found += value
        elif isinstance(value, dict):
            found += named(value, suffix)
    return found


# ------------------------------------------------------------------------------------- the configuration


def test_both_models_run_with_the_paper_s_strengths(tmp_path):
    planned = {run.name: run for run in runs(tmp_path)}
    first, second = planned["02_data_source"], planned["qwen2.5-7b-instruct/02_data_source"]
    assert first.parameters["model"] == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert second.parameters == first.parameters | {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "store": "results/paper/qwen2.5-7b-instruct",
    }
    assert first.out == tmp_path / "02_data_source.ipynb"
    assert second.out == tmp_path / "qwen2.5-7b-instruct" / "02_data_source.ipynb"
    assert (first.parameters["n_samples"], first.parameters["seq_len"]) == (128, 2048)
    labels = [as_spec(method).label for method in first.parameters["methods"]]
    assert labels == ["sparsegpt 50%", "wanda 4:8", "gptq 4-bit", "awq 4-bit"]


def test_a_variant_waits_for_its_own_notebooks(tmp_path):
    planned = {run.name: run for run in runs(tmp_path)}
    assert planned["qwen2.5-7b-instruct/05_domain"].after == ("qwen2.5-7b-instruct/02_data_source",)
    assert planned["05_domain"].after == ("02_data_source",)


def test_every_name_in_it_is_well_formed(tmp_path):
    sources, methods = [], []
    for run in runs(tmp_path):
        assert re.fullmatch(HUB_ID, run.parameters.get("model", "a/b")), run.name
        sources += named(run.parameters, "sources") + list(run.parameters.get("domains", {}).values())
        methods += named(run.parameters, "methods") + run.parameters.get("controls", [])
    assert methods and all(as_spec(method) for method in methods)
    datasets = {parse_hub_name(source)[0] for source in sources}
    assert {"/".join(dataset.split("/")[:2]) for dataset in datasets} == {
        "allenai/c4",
        "Salesforce/wikitext",
        "cerebras/SlimPajama-627B",
        "tau/commonsense_qa",
        "regisss/math_qa",
        "lissadesu/codeqa_v2",
    }


@pytest.mark.parametrize(
    "variants,message",
    [("{b: {modle: x}}", "nearest: model"), ("{../b: {model: x}}", "names a folder"), ("{b: {model: 3}}", "model")],
)
def test_variants_are_checked(tmp_path, variants, message):
    (tmp_path / "p.yml").write_text(f"about: a\ntakes: b\nnotebooks: {{02_data_source: }}\nvariants: {variants}\n")
    with pytest.raises(ColaError, match=message):
        book.plan([], folder=NOTEBOOKS, out=tmp_path, profile=book.read_profile("p", tmp_path))


# ------------------------------------------------------------------------------------------- the hub's files

WORDS = "stone river walks under a quiet red lamp while seven birds count every open door".split()


def prose(i, n=30):
    return " ".join(WORDS[(i * 7 + j * (i + 3)) % len(WORDS)] for j in range(n)) + f" {i}."


def write_lines(path, rows):
    path.parent.mkdir(parents=True)
    with pa.output_stream(str(path), compression="detect") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def write_table(path, rows):
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def commonsense(i):
    texts = [f"{WORDS[(i + j) % len(WORDS)]}" for j in range(5)]
    return {
        "id": f"{i:032x}",
        "question": f"Where would one look for the {prose(i, 8)}",
        "question_concept": "look",
        "choices": {"label": list("ABCDE"), "text": texts},
        "answerKey": "ABCDE"[i % 5],
    }


def mathematics(i):
    return {
        "Problem": f"a train with {i} coaches carries {prose(i, 8)} how many people are in it ?",
        "Rationale": f'"{i} * 3 = {3 * i} answer : b"',
        "options": f"a ) {i} , b ) {3 * i} , c ) 1 , 250 , d ) none of these , e ) 7",
        "correct": "b",
        "annotated_formula": f"multiply({i}, 3)",
        "linear_formula": "multiply(n0,const_3)|",
        "category": "general",
    }


def code(i):
    return {
        "question": f"What does the function {i} return?",
        "code": f"def f{i}(x):\n    return x + {i}",
        "answer": prose(i, 6),
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Every dataset of the profile below one folder, and no network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root, some = tmp_path / "hub", range(1, 41)
    pages = [{"text": prose(i), "timestamp": "2019-04-25T12:57:54Z", "url": "https://x"} for i in some]
    write_lines(root / "allenai/c4/en/c4-train.00000-of-01024.json.gz", pages)
    lines = [{"text": text} for i in some for text in ("", f" = {i} = \n", f" {prose(i)} \n")]
    write_table(root / "Salesforce/wikitext/wikitext-2-raw-v1/train-00000-of-00001.parquet", lines)
    mixed = [{"text": prose(i + 100), "meta": {"redpajama_set_name": "RedPajamaC4"}} for i in some]
    write_lines(root / "cerebras/SlimPajama-627B/train/chunk1/example_train_0.jsonl.zst", mixed)
    write_table(root / "tau/commonsense_qa/data/train-00000-of-00001.parquet", list(map(commonsense, some)))
    write_table(root / "regisss/math_qa/data/train-00000-of-00001.parquet", list(map(mathematics, some)))
    write_table(root / "lissadesu/codeqa_v2/data/train-00000-of-00001.parquet", list(map(code, some)))
    return root


def local(source, root):
    return source.replace("hf:", f"hf:{root}/")


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_the_whole_path_runs_on_random_weights(tmp_path, hub, smollm2_tokenizer, model_type):
    size = {"vocab_size": len(smollm2_tokenizer), "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    tiny_model(model_type, max_position_embeddings=512, num_hidden_layers=2, **size).save_pretrained(tmp_path / "model")
    smollm2_tokenizer.save_pretrained(tmp_path / "model")
    asked = PROFILE.notebooks["05_domain"], PROFILE.notebooks["02_data_source"]
    sources = list(dict.fromkeys(local(source, hub) for values in asked for source in values["sources"]))
    assert len(sources) == 6
    experiment = Experiment(
        str(tmp_path / "model"),
        n_samples=2,
        seq_len=32,
        tokens_per_capability=400,
        capabilities=("math", "code"),
        store=tmp_path / "results",
    )
    taken = sources if model_type == "llama" else sources[:2]
    grid = experiment.run(taken, asked[1]["methods"], draws=1, progress=False)
    assert grid.n_computed == 1 + len(taken) * len(asked[1]["methods"])
    assert set(grid.frame["source"].dropna()) == set(taken)


def test_a_file_of_a_dataset_is_read_no_further_than_asked(hub):
    c4 = f"hf:{hub}/allenai/c4/en/c4-train.00000-of-01024.json.gz"
    assert [s.text for s in load_samples(f"{c4}::train[:3]")] == [prose(i) for i in (1, 2, 3)]
    assert len(load_samples(c4)) == 40
    assert load_samples(f"{c4}::train[:1]:url")[0].text == "https://x"
    with pytest.raises(DataError, match=r"names one file, which has no configuration"):
        load_samples(f"{c4}:en")
    with pytest.raises(UnknownNameError, match="column"):
        load_samples(f"{c4}:::texts")
    with pytest.raises(DataError, match="no file .*nothing.json.gz: check the path"):
        load_samples("hf:/nothing.json.gz")


def test_the_profile_s_own_names_are_found_in_the_hub_s_cache(tmp_path, hub, monkeypatch):
    """What a machine without a network has fetched before."""
    from huggingface_hub import constants

    (c4,) = (s for s in PROFILE.notebooks["02_data_source"]["sources"] if "allenai" in s)
    commit, repository = "0" * 40, tmp_path / "cache" / "datasets--allenai--c4"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(hub / "allenai/c4")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(load_samples(c4)) == 40
    with pytest.raises(DataError, match=r"train/chunk1/example_train_0\.jsonl\.zst of dataset cerebras/SlimPajama"):
        load_samples("hf:cerebras/SlimPajama-627B/train/chunk1/example_train_0.jsonl.zst")


def test_questions_are_read_as_their_publishers_write_them():
    asked = as_question(commonsense(6))
    assert asked["answer"] == asked["choices"][1] == WORDS[7] and asked["gold"] == 1
    assert asked["question"].endswith(f"\nA. {WORDS[6]}\nB. {WORDS[7]}\nC. {WORDS[8]}\nD. {WORDS[9]}\nE. {WORDS[10]}")
    asked = as_question(mathematics(5))
    assert asked["choices"] == ["5", "15", "1 , 250", "none of these", "7"] and asked["answer"] == "15"
    assert asked["reasoning"] == "5 * 3 = 15 answer : b"
    assert as_question(code(2))["question"].startswith("def f2(x):\n    return x + 2\nWhat does")
    assert as_question(commonsense(1) | {"answerKey": ""}) == {"text": ""}, "as in a test split"
    assert as_question({"question": "q", "answer": "a"}) == {"question": "q", "answer": "a"}
