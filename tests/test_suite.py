"""Suites: fixed samples of evaluation items within a budget, over capabilities and over any sources."""

from __future__ import annotations

import dataclasses

import pytest

from cola_lib.data import load_samples, source_names
from cola_lib.errors import DataError, UnknownNameError
from cola_lib.evaluate import CAPABILITIES, LINES, EvalItem, Suite, capability_suite, rows_of, source_suite
from cola_lib.evaluate import suite as suite_module
from cola_lib.evaluate.requests import split_spaces
from cola_lib.evaluate.suite import TASKS

BUDGET = 3000


@pytest.fixture(scope="module")
def suite(smollm2_tokenizer) -> Suite:
    """The suite in which tasks take turns, of the pilot's stored cells."""
    return capability_suite(smollm2_tokenizer, tokens_per_capability=BUDGET, balance="items")


def cost(item: EvalItem, tokenizer) -> int:
    return sum(row.n_tokens for row in rows_of(tuple(dict.fromkeys(item.requests(tokenizer)))))


def of(suite: Suite, capability: str) -> list[EvalItem]:
    return [item for item in suite.items if item.capability == capability]


def one(suite: Suite, task: str) -> EvalItem:
    return next(item for item in suite.items if item.task == task)


def test_every_task_has_its_turn_within_the_budget(suite, smollm2_tokenizer):
    assert suite.capabilities == CAPABILITIES
    table = suite.count_table().set_index("task")
    assert list(table.index) == [task.name for task in TASKS]
    for capability in CAPABILITIES:
        items = of(suite, capability)
        tokens = sum(cost(item, smollm2_tokenizer) for item in items)
        rows = table[table["capability"] == capability]
        assert tokens == rows["tokens"].sum() <= BUDGET
        assert tokens > BUDGET - 512, "what is left would not hold the longest item allowed"
        assert rows["items"].max() - rows["items"].min() <= 1
        assert rows["items"].min() >= 1
        assert rows["items"].sum() == len(items)


def test_ids_are_unique_and_from_the_evaluation_half(suite):
    assert len({item.id for item in suite.items}) == len(suite.items)
    for task in TASKS:
        taken = {item.id.partition("/")[2] for item in suite.items if item.task == task.name}
        held_out = {sample.id for sample in load_samples(task.source, "evaluation")}
        assert taken <= held_out
        if task.source.split(":")[0] not in ("lambada", "humaneval"):
            assert not taken & {sample.id for sample in load_samples(task.source, "calibration")}


def test_the_same_arguments_give_the_same_suite(suite, smollm2_tokenizer):
    again = capability_suite(smollm2_tokenizer, tokens_per_capability=BUDGET, balance="items")
    assert again.items == suite.items and again.fingerprint == suite.fingerprint
    other = capability_suite(smollm2_tokenizer, tokens_per_capability=BUDGET, seed=1, balance="items")
    assert other.fingerprint != suite.fingerprint


def test_a_smaller_budget_gives_the_first_items_of_a_larger_one(suite, smollm2_tokenizer):
    small = capability_suite(smollm2_tokenizer, tokens_per_capability=BUDGET // 2, balance="items")
    for capability in CAPABILITIES:
        first = of(small, capability)
        assert 0 < len(first) < len(of(suite, capability))
        assert first == of(suite, capability)[: len(first)]


def test_a_capability_alone_is_what_it_is_among_others(suite, smollm2_tokenizer):
    alone = capability_suite(smollm2_tokenizer, tokens_per_capability=BUDGET, capabilities=["math"], balance="items")
    assert list(alone.items) == of(suite, "math")


def test_the_budget_counts_tokens_that_are_run_once(suite, smollm2_tokenizer):
    item = one(suite, "piqa")
    apart = sum(len(request.fed) for request in item.requests(smollm2_tokenizer))
    context = len(smollm2_tokenizer(item.context)["input_ids"])
    assert cost(item, smollm2_tokenizer) <= apart - context


def test_a_window_is_the_start_of_a_document(suite, smollm2_tokenizer):
    documents = {s.id: s.text for name in ("c4", "wikipedia") for s in load_samples(name, "evaluation")}
    lengths = []
    for item in of(suite, "language"):
        if item.task != "lambada":
            (text,) = item.continuations
            assert item.context == "" and documents[item.id.partition("/")[2]].startswith(text)
            lengths.append(len(smollm2_tokenizer(text)["input_ids"]))
    assert max(lengths) == suite_module.WINDOW_TOKENS and min(lengths) >= suite_module.MIN_WINDOW_TOKENS


def test_a_window_never_ends_inside_a_character(smollm2_tokenizer):
    sample = load_samples("multilingual", "all")[0]
    for text in ("日本語の文章" * 60, "ħéłłø 😀" * 60, "𝔘𝔫𝔦𝔠𝔬𝔡𝔢" * 60):
        _, (window,), _ = suite_module._window(dataclasses.replace(sample, text=text), smollm2_tokenizer)
        assert text.startswith(window) and len(window) < len(text) and "\ufffd" not in window


def test_a_short_document_is_left_out_and_counted(smollm2_tokenizer, monkeypatch):
    real = load_samples("c4", "evaluation")

    def with_short_ones(name, split):
        samples = load_samples(name, split)
        if name == "c4":
            return [dataclasses.replace(s, text=s.text if i % 2 else "too short") for i, s in enumerate(real)]
        return samples

    monkeypatch.setattr(suite_module, "load_samples", with_short_ones)
    short = capability_suite(smollm2_tokenizer, tokens_per_capability=BUDGET, capabilities=["language"])
    count = short.counts[0]
    assert count.task == "c4" and count.too_short > 0 and count.items > 0
    assert all(len(item.continuations[0]) > 50 for item in short.items if item.task == "c4")


def test_long_items_are_left_out_and_counted(smollm2_tokenizer):
    short = capability_suite(
        smollm2_tokenizer,
        tokens_per_capability=BUDGET,
        capabilities=["commonsense"],
        balance="items",
        max_length=100,
    )
    assert max(len(r.fed) for item in short.items for r in item.requests(smollm2_tokenizer)) <= 100
    too_long = short.count_table().set_index("task")["too_long"]
    assert too_long["boolq"] > 0 and too_long["csqa"] == 0


def test_how_tasks_are_worded(suite):
    lambada = one(suite, "lambada")
    assert lambada.continuations[0].startswith(" ") and " " not in lambada.continuations[0].strip()
    winogrande = one(suite, "winogrande")
    assert len(set(winogrande.context)) == 2 and len(set(winogrande.continuations)) == 1
    assert all("_" not in text for pair in winogrande.pairs for text in pair)
    assert one(suite, "boolq").continuations == (" no", " yes")
    assert one(suite, "boolq").context.count("Question:") == 1
    assert len(one(suite, "csqa").continuations) == 5
    for task in ("piqa", "arc_easy", "arc_challenge", "openbookqa", "siqa", "mmlu"):
        item = one(suite, task)
        assert item.context.startswith("Question: ") and item.context.endswith("\nAnswer:")
        assert all(choice.startswith(" ") and choice.strip() for choice in item.continuations)
    for task in ("gsm8k", "math"):
        item = one(suite, task)
        assert item.context.endswith("\nAnswer:") and len(item.continuations) == 1
        assert len(item.continuations[0]) > 20, "reasoning is part of the solution"
    assert "def " in one(suite, "humaneval").context
    assert "def " in one(suite, "mbpp").continuations[0]


def test_gold_is_the_right_answer(suite):
    for task in ("csqa", "piqa", "hellaswag", "mmlu", "arc_easy"):
        item = one(suite, task)
        source = next(t.source for t in TASKS if t.name == task)
        sample = next(s for s in load_samples(source, "evaluation") if s.id == item.id.partition("/")[2])
        assert item.continuations[item.gold].strip() == sample.answer


@pytest.mark.parametrize("budget", [10, 200])
def test_a_budget_that_leaves_a_task_out_gives_both_numbers(smollm2_tokenizer, budget):
    with pytest.raises(DataError, match=rf"commonsense: a budget of {budget} tokens .* at least \d+"):
        capability_suite(smollm2_tokenizer, tokens_per_capability=budget, capabilities=["commonsense"])


def test_no_usable_item_is_an_error(smollm2_tokenizer):
    with pytest.raises(DataError, match="none of the .* items of task c4 can be used: .* too long"):
        capability_suite(smollm2_tokenizer, tokens_per_capability=10**9, capabilities=["language"], max_length=5)


def test_a_budget_beyond_all_items_warns(smollm2_tokenizer, caplog):
    whole = capability_suite(smollm2_tokenizer, tokens_per_capability=10**9, capabilities=["code"])
    assert [count.available - count.too_long for count in whole.counts] == [count.items for count in whole.counts]
    assert "fewer than the budget of 1000000000" in caplog.text


def test_an_unknown_capability_has_nearest_names(smollm2_tokenizer):
    with pytest.raises(UnknownNameError, match="unknown capability 'maths'; nearest: math"):
        capability_suite(smollm2_tokenizer, capabilities=["maths"])


def test_the_default_suite_is_what_it_was(smollm2_tokenizer):
    # Written down: stored cells are found by it. If it has to change, raise the revision "suite".
    small = capability_suite(smollm2_tokenizer, tokens_per_capability=1120, balance="items")
    assert (small.fingerprint, len(small.items)) == ("8e590fcd43f37b169d08", 59)


# ------------------------------------------------------------------------------- tasks of equal weight, gold alone


@pytest.fixture(scope="module")
def balanced(smollm2_tokenizer) -> Suite:
    return capability_suite(smollm2_tokenizer, tokens_per_capability=BUDGET, capabilities=(*CAPABILITIES, *LINES))


def test_tasks_of_a_capability_bring_about_equal_bytes(balanced):
    for capability, rows in balanced.count_table().groupby("capability"):
        items = of(balanced, capability)
        scored = max(len(answer.encode()) for item in items for _, answer in [item.pairs[item.gold]])
        assert rows["bytes"].max() - rows["bytes"].min() <= scored, "a task is ahead by its last item at most"
        answers = [split_spaces(*item.pairs[item.gold])[1] for item in items]
        assert rows["bytes"].sum() == sum(len(answer.encode()) for answer in answers)


def test_tasks_with_answers_of_a_few_tokens_decide_no_capability(balanced):
    assert balanced.capabilities == (*CAPABILITIES, *LINES)
    for line in LINES:
        assert {item.task for item in of(balanced, line)} == {line}
        assert all(item.task != line for capability in CAPABILITIES for item in of(balanced, capability))


def test_a_smaller_balanced_budget_gives_the_first_items_of_a_larger_one(balanced, smollm2_tokenizer):
    small = capability_suite(smollm2_tokenizer, tokens_per_capability=BUDGET // 2)
    for capability in CAPABILITIES:
        assert of(small, capability) == of(balanced, capability)[: len(of(small, capability))] != []


def test_the_gold_choice_alone_costs_less_and_has_the_same_likelihood(balanced, smollm2_tokenizer):
    options = {"tokens_per_capability": BUDGET, "capabilities": ["commonsense"]}
    alone = capability_suite(smollm2_tokenizer, **options, choices="gold")
    whole = {item.id: item for item in of(balanced, "commonsense")}
    assert len(alone.items) > len(whole)
    for item in alone.items:
        assert len(item.continuations) == 1
        if item.id in whole:
            other = whole[item.id]
            assert item.requests(smollm2_tokenizer) == (other.requests(smollm2_tokenizer)[other.gold],)


def test_an_unknown_balance_or_choice_of_choices_is_named(smollm2_tokenizer):
    with pytest.raises(UnknownNameError, match="balance"):
        capability_suite(smollm2_tokenizer, balance="tokens")
    with pytest.raises(UnknownNameError, match="choices"):
        capability_suite(smollm2_tokenizer, choices="best")


# ------------------------------------------------------------------------------------------- over any sources

SOURCES = {
    "de": "multilingual:language=de",
    "rust": "mbpp:language=rust",
    "stem": "mmlu:group=stem",
    "level 5": "math:level=5",
    "prose/c++": "code",
    "commonsense": "commonsense",
}
TOKENS = 1024


@pytest.fixture(scope="module")
def mixed(smollm2_tokenizer) -> Suite:
    return source_suite(smollm2_tokenizer, SOURCES, tokens_per_source=TOKENS)


def sample_id(item: EvalItem) -> str:
    return item.id.rpartition("/")[2].partition("+")[0]


def test_every_packaged_source_is_worded():
    assert set(suite_module.FORMATS) == set(source_names()) - {"commonsense"}, "a union is worded as its members"


def test_every_source_is_within_the_budget_and_from_the_evaluation_half(mixed, smollm2_tokenizer):
    assert mixed.capabilities == tuple(SOURCES) and mixed.name == "sources"
    assert len({item.id for item in mixed.items}) == len(mixed.items)
    for name, count in zip(SOURCES, mixed.counts, strict=True):
        items = of(mixed, name)
        tokens = sum(cost(item, smollm2_tokenizer) for item in items)
        assert TOKENS - 512 < tokens == count.tokens <= TOKENS and len(items) == count.items >= 2
        held_out, calibration = (
            {sample.id for sample in load_samples(SOURCES[name], half)} for half in ("evaluation", "calibration")
        )
        taken = {sample_id(item) for item in items}
        assert taken <= held_out and not taken & calibration
        assert {item.task for item in items} == {name} == {count.task} and count.available == len(held_out)


def test_items_are_worded_as_in_the_capability_suite(suite, smollm2_tokenizer):
    """Under the names of the tasks, the same seed gives the same items of each, but for how many fit."""
    same = source_suite(smollm2_tokenizer, {task.name: task.source for task in TASKS}, tokens_per_source=1500)
    for task in TASKS:
        ours, theirs = (
            [dataclasses.replace(item, capability="") for item in which.items if item.task == task.name]
            for which in (same, suite)
        )
        n = min(len(ours), len(theirs))
        assert n >= 2 and ours[:n] == theirs[:n]


def test_a_smaller_budget_or_fewer_sources_give_the_same_first_items(mixed, smollm2_tokenizer):
    names = ["rust", "de"]
    small = source_suite(
        smollm2_tokenizer, {name: SOURCES[name] for name in names}, tokens_per_source=TOKENS // 2, name="small"
    )
    assert small.capabilities == tuple(names) and small.name == "small"
    for name in names:
        first = of(small, name)
        assert 2 <= len(first) < len(of(mixed, name)) and first == of(mixed, name)[: len(first)]
    again = source_suite(smollm2_tokenizer, SOURCES, tokens_per_source=TOKENS, name="again")
    assert again.items == mixed.items and again.fingerprint == mixed.fingerprint
    other = source_suite(smollm2_tokenizer, SOURCES, tokens_per_source=TOKENS, seed=1)
    assert all(of(other, name) != of(mixed, name) for name in SOURCES)


@pytest.mark.parametrize("code", ["de", "ja"])
def test_later_windows_continue_their_documents_after_every_first_one(code, smollm2_tokenizer, caplog):
    source = f"multilingual:language={code}"
    whole = source_suite(smollm2_tokenizer, {"it": source}, tokens_per_source=10**6)
    assert "fewer than the budget" in caplog.text
    documents = {s.id: s.text for s in load_samples(source, "evaluation")}
    n = whole.counts[0].available
    assert [item.id.partition("+")[2] for item in whole.items[:n]] == [""] * n == [""] * len(documents)
    assert all("+" in item.id for item in whole.items[n:])
    numbers = [int(item.id.partition("+")[2] or 0) for item in whole.items]
    assert numbers == sorted(numbers) and max(numbers) > 1
    for name, text in documents.items():
        windows = [item.continuations[0] for item in whole.items if sample_id(item) == name]
        joined = "".join(windows)
        assert text.startswith(joined) and "\ufffd" not in joined
        left = smollm2_tokenizer(text[len(joined) :], add_special_tokens=False)["input_ids"]
        assert len(left) < suite_module.MIN_WINDOW_TOKENS, "all of the document is scored that makes a window"


def test_a_budget_for_one_window_a_document_gives_just_these(smollm2_tokenizer):
    first = source_suite(smollm2_tokenizer, {"de": "multilingual:language=de"}, tokens_per_source=12 * 128)
    assert len(first.items) == first.counts[0].available == 12
    assert not any("+" in item.id for item in first.items)


def test_windows_need_a_tokenizer_that_gives_the_text_back(smollm2_tokenizer, monkeypatch):
    real = smollm2_tokenizer.decode
    monkeypatch.setattr(smollm2_tokenizer, "decode", lambda *args, **kwargs: real(*args, **kwargs).upper())
    sources = {"de": "multilingual:language=de"}
    assert source_suite(smollm2_tokenizer, sources, tokens_per_source=1000).items
    with pytest.raises(DataError, match="does not give its text back"):
        source_suite(smollm2_tokenizer, sources, tokens_per_source=10**6)


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        ({}, {}, "a suite over no sources"),
        ({"de": "multilingual:language=de"}, {"tokens_per_source": 200}, "de: a budget of 200 .* 2 items.* least 256"),
        ({"de": "multilingual:language=de"}, {"tokens_per_source": 9}, "has 2 items.*raise tokens_per_source"),
        ({"mk": "multilingual:language=mk"}, {}, "mk: all .* windows of one document"),
        ({"m": "math"}, {"max_length": 10}, "m: none of the 2551 items .*raise max_length"),
        ({"he": "multilingual:language=he"}, {}, "0 samples in its evaluation half"),
        ({"mine": "mine.jsonl"}, {}, "no evaluation half"),
    ],
)
def test_a_source_that_gives_no_two_items_is_refused(sources, settings, message, smollm2_tokenizer):
    with pytest.raises(DataError, match=message):
        source_suite(smollm2_tokenizer, sources, **({"tokens_per_source": 2000} | settings))


def test_an_unknown_source_has_nearest_names(smollm2_tokenizer):
    with pytest.raises(UnknownNameError, match="unknown source 'mbp'; nearest: mbpp"):
        source_suite(smollm2_tokenizer, {"rust": "mbp:language=rust"}, tokens_per_source=TOKENS)


# ------------------------------------------------------------------------------------------- items and suites

ITEM = EvalItem("id", "math", "gsm8k", "context", (" a", " b"), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": 2}, "gold is 2, with 2 continuations"),
        ({"context": ("x", "y", "z")}, "3 contexts for 2 continuations"),
        ({"continuations": (" a", "")}, "continuation 1 is empty"),
        ({"continuations": ()}, "with 0 continuations"),
    ],
)
def test_a_wrong_item_is_refused(change, message):
    with pytest.raises(DataError, match=f"item id: .*{message}"):
        dataclasses.replace(ITEM, **change)


def test_the_fingerprint_is_of_the_content(monkeypatch):
    suite = Suite((ITEM,))
    assert Suite((ITEM,), name="other", seed=4, tokens_per_capability=9).fingerprint == suite.fingerprint
    for change in ({"id": "j"}, {"context": "c"}, {"gold": 0}, {"continuations": (" a", " c")}, {"task": "t"}):
        assert Suite((dataclasses.replace(ITEM, **change),)).fingerprint != suite.fingerprint
    monkeypatch.setitem(__import__("cola_lib.registry", fromlist=["x"]).REVISIONS, "suite", 99)
    assert Suite((ITEM,)).fingerprint != suite.fingerprint
