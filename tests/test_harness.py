"""lm-eval, offline: the official definitions on packaged items, beside this library's own evaluator."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from typer.testing import CliRunner, Result

from cola_lib import cli
from cola_lib.data import load_samples
from cola_lib.data.published import published
from cola_lib.errors import DataError, SandboxError, SpecError, UnknownNameError
from cola_lib.evaluate import EvalItem, Suite, evaluate
from cola_lib.evaluate.harness import GROUPS, SUITES, HarnessResult, harness_suite, interval, run_harness
from cola_lib.evaluate.harness import official as official_module
from cola_lib.evaluate.harness import run as run_module
from cola_lib.evaluate.harness.official import CodeScorer, definition, tasks_folder, with_sandbox
from cola_lib.evaluate.harness.result import result_of
from cola_lib.evaluate.harness.tasks import TASKS as HARNESS_TASKS
from cola_lib.evaluate.harness.tasks import named
from cola_lib.evaluate.sandbox import CodeRun, Limits
from cola_lib.models import LanguageModel
from tests.byte_tokenizer import byte_tokenizer
from tests.tiny_models import tiny_language_model

pytestmark = pytest.mark.usefixtures("assets_dir")

LIMIT = 3
CHOICE = tuple(task.name for task in HARNESS_TASKS if task.capability == "commonsense")
SCHEMA = ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "samples")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    tokenizer = byte_tokenizer()
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 0}
    return tiny_language_model("llama", tokenizer, sliding_window=None, num_hidden_layers=1, **shape)


@pytest.fixture(scope="module")
def choices(lm) -> HarnessResult:
    """Every likelihood task, a few items of each."""
    return run_harness(lm, harness_suite(["commonsense", "lambada_openai", "mmlu_anatomy"], limit=LIMIT))


# ---------------------------------------------------------------------------------------------
# both evaluators say the same


def as_items(samples: list[Mapping], capability: str) -> list[EvalItem]:
    """The requests that lm-eval made of its items, as this library's own."""
    made = []
    for sample in samples:
        contexts, continuations = zip(*sample["arguments"], strict=True)
        made.append(EvalItem(sample["item"], capability, "any", contexts, continuations))
    return made


def test_both_evaluators_agree_on_every_likelihood_and_every_answer(lm, choices):
    for task, samples in choices.report["samples"].items():
        ours = evaluate(lm, Suite(tuple(as_items(samples, "any"))), progress=False)
        for row, sample in zip(ours.itertuples(), samples, strict=True):
            theirs = [response[0] for response in sample["filtered_resps"]]
            np.testing.assert_allclose(row.choice_nll, -np.array(theirs), rtol=1e-5, atol=1e-4, err_msg=task)
            if len(theirs) == 1:
                assert sample["perplexity"] == theirs[0]
                continue
            gold = sample["target"]
            if task == "winogrande":  # the gap is in the context, and the target is what follows it
                gold = int(sample["doc"]["answer"]) - 1
            if isinstance(gold, str):
                gold = int(gold) if gold.isdigit() else "ABCDE".index(gold)
            best = int(np.argmin(row.choice_nll))
            assert sample["acc"] == (best == gold)
            if "acc_norm" in sample:
                texts = [text.removeprefix(" ") for _, text in sample["arguments"]]
                assert sample["acc_norm"] == (int(np.argmin(np.divide(row.choice_nll, list(map(len, texts))))) == gold)
    assert {task.name for task in HARNESS_TASKS if task.capability == "commonsense"} < choices.report["samples"].keys()


def test_accuracy_by_item_makes_the_task(choices):
    for task in CHOICE:
        right = [sample["acc"] for sample in choices.report["samples"][task]]
        assert choices.report["results"][task]["acc,none"] == pytest.approx(np.mean(right))
        assert len(right) == LIMIT


# ---------------------------------------------------------------------------------------------
# items


@pytest.mark.parametrize("task", [task for task in HARNESS_TASKS if task.source], ids=lambda task: task.name)
def test_only_held_out_items_are_scored(task):
    suite = harness_suite(task.name)
    wanted, examples = suite.rows[task.name]
    held_out = {sample.id for sample in load_samples(task.source, "evaluation")}
    assert wanted and {item.sample.id for item in wanted} <= held_out
    assert {item.split for item in wanted} == {task.split}
    if task.source not in ("humaneval", "lambada", "mmlu"):
        assert examples and not {item.sample.id for item in examples} & held_out
    everything = harness_suite(task.name, items="all").rows[task.name][0]
    assert len(everything) >= len(wanted) and wanted == [item for item in everything if item.held_out]


@pytest.mark.parametrize("name", sorted({task.source for task in HARNESS_TASKS if task.source}))
def test_a_row_and_its_sample_are_one_item(name):
    for item in published(name)[::97]:
        texts = [text for value in item.row.values() for text in ([value] if isinstance(value, str) else [])]
        words = set(" ".join(texts).split())
        asked = item.sample.question.split()
        assert sum(word in words for word in asked) >= 0.5 * len(asked), (item.row, item.sample.question)


def test_the_number_of_published_items_is_the_benchmarks(assets_dir):
    counts = {name: len(published(name)) for name in ("piqa", "gsm8k", "humaneval", "mbpp", "arc", "math", "lambada")}
    assert counts == {
        "piqa": 1838,
        "gsm8k": 1319,
        "humaneval": 164,
        "mbpp": 500,
        "arc": 570 + 299,
        "math": 5000,
        "lambada": 5153,
    }


def test_items_are_named_in_the_log(choices):
    for task, samples in choices.report["samples"].items():
        expected = harness_suite(task, limit=LIMIT).item_ids(task)
        assert tuple(sample["item"] for sample in samples) == expected and len(set(expected)) == LIMIT
    frame = choices.frame()
    assert set(frame["item"]) == {s["item"] for samples in choices.report["samples"].values() for s in samples}


# ---------------------------------------------------------------------------------------------
# definitions


@pytest.mark.parametrize("task", HARNESS_TASKS, ids=lambda task: task.name)
def test_every_definition_is_the_official_one(task):
    assert (tasks_folder() / task.yaml).is_file()
    config = definition(task)
    assert config["task"] == task.name
    if task.source:
        assert config.get(f"{task.split}_split") == task.split


def test_groups_are_the_official_ones():
    from lm_eval.tasks._yaml_loader import load_yaml

    for group, path in GROUPS.items():
        raw = load_yaml(tasks_folder() / path)
        assert raw["group"] == group
        members = {task.name for task in HARNESS_TASKS if group in task.groups}
        if group == "hendrycks_math":
            assert members == set(raw["task"])
        elif group != "mmlu":
            (tag,) = raw["task"]
            tagged = {t.name for t in named("mmlu") if load_yaml(tasks_folder() / t.yaml)["tag"] == tag}
            assert members == tagged
    assert len(SUITES["knowledge"]) == 57


def test_reports_keep_the_schema(choices, lm):
    report = choices.report
    assert set(SCHEMA) <= report.keys() and "groups" in report
    for task in ("piqa", "boolq"):
        raw = definition(next(iter(named(task))))
        assert report["versions"][task] == raw["metadata"]["version"]
        assert report["configs"][task]["doc_to_text"] == raw["doc_to_text"]
        assert report["configs"][task]["dataset_path"] == raw["dataset_path"]
        assert "custom_dataset" not in report["configs"][task]
        held_out = harness_suite(task).rows[task][0]
        assert report["n-samples"][task] == {"original": len(held_out), "effective": LIMIT}
        assert len(report["task_hashes"][task]) == 64
    assert report["cola"]["items"] == "evaluation" and report["cola"]["model_fingerprint"] == lm.fingerprint
    assert report["results"]["mmlu"]["acc,none"] == report["results"]["mmlu_anatomy"]["acc,none"]
    assert report["groups"]["mmlu_stem"]["sample_len"] == LIMIT
    assert "acc_stderr,none" in report["results"]["piqa"] and report["results"]["piqa"]["acc_stderr,none"] == "N/A"


def test_prompts_are_worded_as_officially(choices):
    sample = choices.report["samples"]["piqa"][0]
    doc = sample["doc"]
    assert sample["arguments"] == [[f"Question: {doc['goal']}\nAnswer:", f" {doc[key]}"] for key in ("sol1", "sol2")]
    boolq = choices.report["samples"]["boolq"][0]
    assert boolq["arguments"][0][0].endswith("?\nAnswer:") and [a[1] for a in boolq["arguments"]] == [" no", " yes"]
    assert [a[1] for a in choices.report["samples"]["commonsense_qa"][0]["arguments"]] == [" A", " B", " C", " D", " E"]


TURNS = """{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}\
{% if add_generation_prompt %}<assistant>{% endif %}"""


def test_a_chat_template_makes_turns_of_examples_and_question(lm, monkeypatch):
    monkeypatch.setattr(lm.tokenizer, "chat_template", TURNS)
    suite = harness_suite("piqa", limit=2, num_fewshot=1, chat_template=True)
    found = run_harness(lm, suite, progress=False).report
    for sample in found["samples"]["piqa"]:
        (prompt, _), _ = sample["arguments"]
        turns = re.findall("<(user|assistant)>([^<]*)", prompt)
        assert [role for role, _ in turns] == ["user", "assistant", "user", "assistant"]
        assert turns[2][1] == f"Question: {sample['doc']['goal']}\nAnswer:" and turns[3][1] == ""
        assert turns[0][1].startswith("Question: ") and turns[1][1].strip()
    assert found["chat_template"] == TURNS and found["fewshot_as_multiturn"] and len(found["chat_template_sha"]) == 64
    assert suite.fingerprint != harness_suite("piqa", limit=2, num_fewshot=1).fingerprint


def test_without_a_chat_template_there_is_none_to_apply(lm):
    with pytest.raises(SpecError, match="has no chat template; leave chat_template"):
        run_harness(lm, harness_suite("piqa", limit=1, chat_template=True))


def test_the_model_and_its_tokenizer_are_left_alone(lm, choices):
    assert lm.tokenizer.pad_token is None
    before = lm.fingerprint
    lm.weights_changed()
    assert lm.fingerprint == before


def test_a_report_survives_json(choices):
    again = result_of(json.loads(json.dumps(choices.to_dict())))
    assert again.report == choices.report
    assert again.summary().equals(choices.summary())
    with pytest.raises(DataError, match="no 'samples'"):
        result_of({"results": {}})


# ---------------------------------------------------------------------------------------------
# generated answers


def test_solved_examples_come_from_the_other_half(lm):
    report = run_harness(lm, harness_suite("gsm8k", limit=2, max_length=1200)).report
    assert report["n-shot"]["gsm8k"] == 5 and set(report["results"]["gsm8k"]) > {"exact_match,strict-match"}
    calibration = {sample.question for sample in load_samples("gsm8k", "calibration")}
    for sample in report["samples"]["gsm8k"]:
        *examples, asked = sample["arguments"][0][0].split("Question: ")[1:]
        assert len(examples) == 5
        assert {text.partition("\nAnswer: ")[0].strip() for text in examples} <= calibration
        assert asked.partition("\nAnswer:")[0].strip() == sample["doc"]["question"].strip()
        assert asked.partition("\nAnswer:")[0].strip() not in calibration


def test_an_item_is_never_an_example_for_itself():
    """With all items there is no other half: lm-eval must know that examples and items are one split."""
    suite = harness_suite("gsm8k", items="all")
    (made,) = official_module.build(suite, {})
    assert made.fewshot_cfg.split == made.config.test_split
    docs = list(made.eval_docs)
    assert len(docs) == 1319
    few = docs[:6]
    made.sampler.replace_df(few)
    for doc in few:
        drawn = made.sampler.sample(n=5, eval_doc=doc)
        assert doc not in drawn and len(drawn) == 5


def test_mathematics_is_scored_by_exact_match(lm, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    suite = harness_suite("hendrycks_math_algebra", limit=2)
    answers = [item.row["answer"] for item in suite.rows["hendrycks_math_algebra"][0][:2]]
    replies = [f" The answer is ${answers[0]}$.", " I do not know."]
    monkeypatch.setattr(HFLM, "generate_until", lambda self, requests, **_: replies)
    result = run_harness(lm, suite)
    assert [s["exact_match"] for s in result.report["samples"]["hendrycks_math_algebra"]] == [1, 0]
    assert result.report["results"]["hendrycks_math"]["exact_match,none"] == 0.5


# ---------------------------------------------------------------------------------------------
# generated code


def test_code_is_not_run_unless_that_is_allowed(lm, monkeypatch):
    monkeypatch.setattr(run_module, "check_sandbox", lambda: pytest.fail("code was run"))
    with pytest.raises(SandboxError, match=r"humaneval, mbpp runs code.*--allow-code-execution"):
        run_harness(lm, harness_suite("code", limit=1))


def test_where_nothing_can_be_contained_nothing_is_computed(lm, monkeypatch):
    def refuse() -> None:
        raise SandboxError("no namespaces here")

    monkeypatch.setattr(run_module, "check_sandbox", refuse)
    monkeypatch.setattr(run_module, "build", lambda *_: pytest.fail("the model was about to run"))
    with pytest.raises(SandboxError, match="no namespaces"):
        run_harness(lm, harness_suite("humaneval"), allow_code_execution=True)


def test_the_gold_solutions_of_humaneval_pass(contained):
    """All 164, a tenth of a second of processor time each."""
    scorer = CodeScorer(Limits(cpu_seconds=20, wall_seconds=120))
    failed = []
    for item in published("humaneval"):
        row = item.row
        program = row["prompt"] + row["canonical_solution"]
        test = f"{row['test']}\ncheck({row['entry_point']})"
        if scorer.share([test], [[program]]) != 1:
            failed.append((row["task_id"], scorer.runs[-1].output[-200:]))
    assert not failed and len(scorer.runs) == 164


def test_programs_are_scored_as_the_definitions_say(lm, contained, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    suite = harness_suite("code", limit=2)
    gold = {name: [item.row for item in suite.rows[name][0][:2]] for name in ("humaneval", "mbpp")}
    prompts = []

    def generate(self, requests, **_):
        prompts.extend(request.args[0] for request in requests)
        solved, wrong = gold["humaneval"][0]["canonical_solution"], "    return None\n"
        return [solved, wrong, gold["mbpp"][0]["code"], "raise SystemExit(0)"]

    monkeypatch.setattr(HFLM, "generate_until", generate)
    result = run_harness(lm, suite, allow_code_execution=True)
    report = result.report
    assert prompts[0] == gold["humaneval"][0]["prompt"]
    assert prompts[2].count("[DONE]") == 3 and prompts[2].endswith("[BEGIN]\n")
    assert "similar elements from the given two tuple lists" in prompts[2]
    assert report["results"]["humaneval"]["pass@1,create_test"] == 0.5
    assert report["results"]["mbpp"]["pass_at_1,none"] == 0.5
    outcomes = {task: [s["sandbox"]["outcome"] for s in samples] for task, samples in report["samples"].items()}
    assert outcomes == {"humaneval": ["passed", "failed"], "mbpp": ["passed", "failed"]}
    assert report["cola"]["sandbox"]["wall_seconds"] == Limits().wall_seconds
    summary = result.summary().set_index("name")
    assert summary.loc["mbpp", "low"] < 0.5 < summary.loc["mbpp", "high"]


def test_no_function_that_runs_programs_unguarded_is_imported():
    import sys

    tasks = [task for task in HARNESS_TASKS if task.code]
    assert {task.name for task in tasks} == {"humaneval", "mbpp"}
    for task in tasks:
        config = with_sandbox(task, definition(task), CodeScorer(Limits()))
        assert config["metric_list"][0]["metric"].__module__ == official_module.__name__
        assert f"lm_eval.tasks.{task.name}.utils" not in sys.modules
        assert "utils." not in repr(config)


def test_every_program_of_an_item_counts(monkeypatch):
    runs = iter([CodeRun("passed", "", 0, 0.1, 0.1), CodeRun("timeout", "", -9, 5.0, 5.0)])
    monkeypatch.setattr(official_module, "run_code", lambda *a, **k: next(runs))
    scorer = CodeScorer(Limits())
    assert scorer.metric("humaneval")(references=["t"], predictions=[["a", "b"]], k=[1]) == {"pass@1": 0.5}
    assert [run.outcome for run in scorer.runs] == ["passed", "timeout"]


# ---------------------------------------------------------------------------------------------
# what is left out, and what is refused


def test_what_the_packages_lack_is_said(caplog):
    suite = harness_suite("language")
    assert [task.name for task in suite.tasks] == ["lambada_openai"]
    assert list(suite.missing) == ["wikitext"] and "wikitext is left out" in caplog.text
    with pytest.raises(DataError, match=r"wikitext.*dataset='hub'"):
        harness_suite("wikitext")
    assert [task.name for task in harness_suite("language", dataset="hub", items="all").tasks] == [
        "wikitext",
        "lambada_openai",
    ]


def test_the_hub_is_never_mixed_with_halves(lm):
    with pytest.raises(SpecError, match="items='all'"):
        harness_suite("piqa", dataset="hub")
    suite = harness_suite("piqa", dataset="hub", items="all")
    with pytest.raises(SpecError, match="no fingerprint"):
        _ = suite.fingerprint


def test_without_a_hub_its_data_are_an_error_and_no_fallback(lm, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"piqa.*baber/piqa from the hub: offline.*packaged"):
        run_harness(lm, harness_suite("piqa", dataset="hub", items="all"))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (("pica",), UnknownNameError, "piqa"),
        ((["piqa", "nothing at all"],), UnknownNameError, "suite or task of lm-eval"),
        (([],), DataError, "no task was named"),
    ],
)
def test_unknown_names_are_refused(arguments, error, match):
    with pytest.raises(error, match=match):
        harness_suite(*arguments)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"limit": 0}, SpecError),
        ({"num_fewshot": -1}, SpecError),
        ({"max_length": 0}, SpecError),
        ({"items": "calibration"}, UnknownNameError),
        ({"dataset": "web"}, UnknownNameError),
    ],
)
def test_impossible_choices_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        harness_suite("piqa", **options)


def test_a_batch_has_a_request(lm):
    with pytest.raises(SpecError, match="batch_size"):
        run_harness(lm, harness_suite("piqa", limit=1), batch_size=0)


# ---------------------------------------------------------------------------------------------
# intervals, and the store


def test_intervals_of_shares_are_wilsons():
    value = np.array([1.0] * 7 + [0.0] * 3)
    low, high = interval(value, np.ones(10), "acc")
    z = norm.ppf(0.975)
    for end in (low, high):  # Wilson's interval ends where the score test is at its limit
        assert abs(0.7 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 10))
    assert interval(np.ones(5), np.ones(5), "acc")[1] == pytest.approx(1)


def test_intervals_of_rates_cover_at_their_level():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        weight = rng.integers(5, 50, 60)
        value = -0.7 * weight + rng.normal(size=60) * np.sqrt(weight)
        low, high = interval(value, weight, "bits_per_byte")
        inside += low <= 0.7 / math.log(2) <= high
    assert 0.93 <= inside / 2000 <= 0.965
    low, high = interval(np.array([-1.0, -2.0, -3.0]), np.ones(3), "perplexity")
    assert low < math.exp(2) < high
    assert all(map(math.isnan, interval(np.array([1.0]), np.ones(1), "acc")))


def test_the_summary_gives_lm_evals_numbers_with_intervals(choices):
    summary = choices.summary().set_index(["name", "metric"])
    results = choices.report["results"]
    for name, metric in summary.index:
        row = summary.loc[(name, metric)]
        assert row["value"] == results[name][f"{metric},none"] and row["n"] == LIMIT
        assert row["low"] <= row["value"] <= row["high"]
    assert {"mmlu", "mmlu_stem", "lambada_openai"} <= set(summary.index.get_level_values("name"))


def test_a_suites_name_holds_what_decides_its_numbers():
    suite = harness_suite("piqa", limit=5)
    assert suite.fingerprint == harness_suite(["piqa"], limit=5).fingerprint
    others = [
        harness_suite("piqa", limit=6),
        harness_suite("piqa", limit=5, num_fewshot=1),
        harness_suite("piqa", limit=5, max_length=64),
        harness_suite("piqa", limit=5, items="all"),
        harness_suite("openbookqa", limit=5),
    ]
    assert len({suite.fingerprint, *(other.fingerprint for other in others)}) == 6
    code = harness_suite("mbpp", limit=5)
    assert code.fingerprint != replace(code, sandbox=Limits(cpu_seconds=50)).fingerprint


# ---------------------------------------------------------------------------------------------
# the command line


def cola(*args: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["evaluate", *map(str, args)])


@pytest.fixture(scope="module")
def checkpoint(lm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def test_a_suite_from_a_shell(checkpoint, tmp_path):
    out = tmp_path / "report.json"
    found = cola(
        *("--model", checkpoint, "--backend", "lm-eval", "--suite", "openbookqa,arc_easy", "--limit", 2),
        *("--device", "cpu", "--no-progress", "--out", out),
    )
    assert found.exit_code == 0, found.output
    assert "openbookqa" in found.stdout and "acc_norm" in found.stdout and str(out) in found.stdout
    assert "it/s" not in found.stderr
    report = json.loads(out.read_text())
    assert set(SCHEMA) <= report.keys()
    assert {task: len(samples) for task, samples in report["samples"].items()} == {"openbookqa": 2, "arc_easy": 2}
    assert f"{result_of(report).summary()['value'][0]:.4f}" in found.stdout


def test_the_same_as_json(checkpoint, tmp_path):
    options = ("--backend", "lm-eval", "--suite", "language", "--limit", 2, "--device", "cpu", "--json")
    found = cola("--model", checkpoint, *options, "--out", tmp_path / "report.json")
    assert found.exit_code == 0, found.output
    printed = json.loads(found.stdout)
    assert "it/s" in found.stderr
    assert list(printed["missing"]) == ["wikitext"]
    assert {row["metric"] for row in printed["results"]} == {"acc", "perplexity"}


def test_the_bars_of_lm_eval_come_back_after_an_error():
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    modules = (model, task, huggingface)
    theirs = [module.tqdm for module in modules]
    with pytest.raises(RuntimeError, match="mine"), run_module._bars(False):
        assert all(module.tqdm(range(3), disable=False).disable for module in modules)
        raise RuntimeError("mine")
    assert [module.tqdm for module in modules] == theirs
    with run_module._bars(True):
        assert [module.tqdm for module in modules] == theirs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--suite", "commonsense"), "suite 'commonsense' is for --backend lm-eval"),
        (("--backend", "lm-eval"), "suite 'capabilities' is for --backend likelihood"),
        (("--backend", "lm-eval", "--suite", "comonsense"), "nearest: commonsense"),
        (("--backend", "lm-eval", "--suite", "code"), "--allow-code-execution"),
        (("--backend", "lm-eval", "--suite", "math", "--capability", "math"), "--capability has no effect"),
        (("--backend", "lm-eval", "--suite", "piqa", "--dataset", "hub"), "items='all'"),
        (("--limit", 3), "--limit has no effect with --backend likelihood"),
        (("--chat-template",), "--chat-template has no effect with --backend likelihood"),
        (("--allow-code-execution",), "--allow-code-execution has no effect"),
        (("--backend", "lmeval"), "unknown backend 'lmeval'; nearest: lm-eval"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_model_is_loaded(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("cola_lib.models.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    found = cola("--model", "smollm2-135m", *options, "--out", tmp_path / "out.json")
    assert found.exit_code == 2 and found.stdout == ""
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
