from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from cola_lib.data import (
    SOURCES,
    EvaluationIndex,
    Sample,
    check_no_overlap,
    evaluation_index,
    find_overlaps,
    load_samples,
    registry,
)
from cola_lib.data.overlap import COMMON, overlap_groups, parts, words
from cola_lib.data.split import overlap_groups as stored_groups
from cola_lib.data.split import part, position, side
from cola_lib.errors import DataError

BOTH = [name for name, info in SOURCES.items() if "calibration" in info.splits]


def sample(text: str, **known) -> Sample:
    return Sample(id=known.pop("id", text), text=text, source=known.pop("source", "test"), **known)


# ---------------------------------------------------------------------------------------------
# the hash


@given(st.lists(st.text(), unique=True, max_size=50), st.floats(0, 1))
def test_halves_are_disjoint_and_complete(keys, fraction):
    samples = [sample(key, id=f"{i}", split_key=key) for i, key in enumerate(keys)]
    calibration, evaluation = (part(samples, s, fraction) for s in ("calibration", "evaluation"))
    assert {s.id for s in calibration}.isdisjoint(s.id for s in evaluation)
    assert sorted((*calibration, *evaluation), key=lambda s: int(s.id)) == samples == part(samples, "all", fraction)


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_only_moves_items_to_evaluation(key, a, b):
    low, high = sorted((a, b))
    assert 0 <= position(key) < 1
    if side(key, low) == "evaluation":
        assert side(key, high) == "evaluation"


@settings(max_examples=20)
@given(st.text(min_size=1, max_size=8), st.floats(0.05, 0.95))
def test_fraction_is_what_chance_allows(prefix, fraction):
    n = 2000
    held_out = sum(side(f"{prefix}{i}", fraction) == "evaluation" for i in range(n))
    assert binom.ppf(1e-9, n, fraction) <= held_out <= binom.ppf(1 - 1e-9, n, fraction)


def test_side_is_the_same_on_every_machine():
    # Written down once: a change here moves every item, and needs a new revision of the split.
    assert [side(key, 0.5)[0] for key in "abcdefghij"] == list("eeecececec")
    assert position("a") == pytest.approx(0.3346070, abs=1e-6)


def test_side_does_not_depend_on_the_process():
    script = "from cola_lib.data.split import position; print(position('mbpp/11'))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {f"{position('mbpp/11')}\n".encode()}


# ---------------------------------------------------------------------------------------------
# what overlaps

SENTENCE = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_thirteen_words_are_an_overlap_and_twelve_are_none():
    item = sample(f"A question: {SENTENCE} fourteen?")
    assert find_overlaps([sample(f"Xy {SENTENCE.upper()}, yz")], [item])[0].text == SENTENCE
    assert not find_overlaps([sample("Xy " + SENTENCE.rsplit(" ", 1)[0] + ", yz")], [item])


def test_short_texts_overlap_when_they_are_the_same():
    assert find_overlaps([sample("What is 2 + 3?", id="a")], [sample("what is 2+3", id="b")])
    assert not find_overlaps([sample("What is 2 + 3? It is 5.")], [sample("what is 2+3")])
    assert not find_overlaps([sample("!?")], [sample("")])


def test_a_short_item_is_found_in_whichever_wording_it_comes():
    item = sample(
        "Question: Where is ice?\nAnswer: at the pole",
        question="Where is ice?",
        answer="at the pole",
        choices=("a", "b"),
    )
    for text in (item.text, "Where is ice? At the pole!", "where is ice at the pole a b"):
        assert find_overlaps([sample(text)], [item]), text
    assert find_overlaps([item], [item])
    assert find_overlaps([sample("mine", question="Where is ice?", answer="At the pole")], [item])
    assert not find_overlaps([sample("Where is ice? In the sea.")], [item])
    short = sample("add(1, 2)\nreturn 3", question="add(1, 2)", answer="return 3", domain="code")
    assert find_overlaps([short], [short]) and find_overlaps([sample(short.text)], [short])


@pytest.mark.parametrize("source", ["mbpp", "openbookqa", "piqa", "csqa", "arc", "winogrande", "gsm8k"])
def test_every_evaluation_item_is_found_again(source):
    items = load_samples(source, "evaluation")[:100]
    index = EvaluationIndex(items)
    common = {item.id for item in items} - {pair.calibration_id for pair in index.find(items)}
    as_text = [sample(item.text, id=item.id) for item in items]
    assert common == set()
    assert len(index.find(as_text)) == len(items)


def test_reasoning_and_choices_count_too():
    item = sample("short", question="q", reasoning=SENTENCE, answer="a")
    assert find_overlaps([sample(SENTENCE)], [item])
    assert find_overlaps([item], [sample(SENTENCE)])
    assert find_overlaps([sample(SENTENCE)], [sample("short", question="q", answer="a", choices=("no", SENTENCE))])


def test_code_takes_forty_words():
    code = " ".join(f"w{i}" for i in range(60))
    solution = sample("t", question="Write it", answer=code, domain="code")
    assert not find_overlaps([sample(" ".join(code.split()[:39]))], [solution])
    assert find_overlaps([sample(" ".join(code.split()[:40]))], [solution])
    assert find_overlaps([sample(SENTENCE)], [sample("t", question=SENTENCE, answer=code, domain="code")])


def test_boilerplate_is_no_overlap():
    many = [sample(f"{SENTENCE} item{i} is a b c", id=str(i)) for i in range(COMMON + 1)]
    assert find_overlaps([sample(SENTENCE)], many[:COMMON])
    assert not find_overlaps([sample(SENTENCE)], many)
    assert overlap_groups(many) == []
    assert overlap_groups(many[:COMMON]) == [sorted(str(i) for i in range(COMMON))]


def test_groups_are_transitive_and_join_split_keys():
    a, b, c, d = (" ".join(f"{name}{i}" for i in range(13)) for name in "abcd")
    chain = [sample(a, id="1"), sample(f"{a} | {b}", id="2"), sample(f"{b} | {c}", id="3"), sample(d, id="4")]
    assert overlap_groups(chain) == [["1", "2", "3"]]
    keyed = [sample(a, id="1", split_key="k"), sample(d, id="2", split_key="k"), sample(f"x {d}", id="3")]
    assert overlap_groups(keyed) == [["3", "k"]]


@given(st.lists(st.integers(0, 30), min_size=13, max_size=60), st.data())
def test_overlaps_agree_with_a_plain_search(numbers, data):
    mine = data.draw(st.lists(st.integers(0, 3), max_size=40))
    start = data.draw(st.integers(0, len(numbers) - 13))
    mine += numbers[start : start + data.draw(st.integers(5, 13))]
    mine += data.draw(st.lists(st.integers(0, 3), min_size=13, max_size=20))
    text, other = (" ".join(f"n{i}" for i in seq) for seq in (mine, numbers))
    runs = {tuple(numbers[i : i + 13]) for i in range(len(numbers) - 12)}
    shared = [mine[i : i + 13] for i in range(len(mine) - 12) if tuple(mine[i : i + 13]) in runs]
    found = find_overlaps([sample(text, id="mine")], [sample(other, id="other")])
    assert [overlap.text for overlap in found] == [" ".join(f"n{i}" for i in run) for run in shared[:1]]


def test_guard_gives_both_numbers_and_an_example():
    clean, dirty = sample("nothing in common here", id="clean"), sample(f"see {SENTENCE}", id="dirty")
    check_no_overlap([clean], [sample(SENTENCE)], what="mine.jsonl")
    with pytest.raises(DataError, match="mine.jsonl: 1 of 2 samples .* the first is dirty"):
        check_no_overlap([clean, dirty], [sample(SENTENCE)], what="mine.jsonl")


# ---------------------------------------------------------------------------------------------
# the packaged sources


@pytest.fixture(scope="module")
def pools(assets_dir):
    """Every packaged sample, by side."""
    halves = {"calibration": [], "evaluation": []}
    for name, info in SOURCES.items():
        if name == "commonsense":
            continue  # drawn from the others
        full = "mbpp:language=all" if name == "mbpp" else name
        for half in halves.keys() & set(info.splits):
            halves[half] += load_samples(full, half)
    return halves


def test_no_item_is_on_both_sides(pools):
    ids, keys = ({half: {getattr(s, what) for s in pools[half]} for half in pools} for what in ("id", "split_key"))
    assert ids["calibration"].isdisjoint(ids["evaluation"])
    assert keys["calibration"].isdisjoint(keys["evaluation"])
    questions = {half: {(s.source, s.question, s.answer) for s in pools[half] if s.question} for half in pools}
    assert questions["calibration"].isdisjoint(questions["evaluation"])


def test_no_text_is_on_both_sides(pools):
    """Every run of words that both halves share is boilerplate, by a search that knows no groups."""
    word = re.compile(r"\w+")
    owners: dict[int, set[str]] = defaultdict(set)
    sides: dict[int, int] = defaultdict(int)
    for flag, half in ((1, "calibration"), (2, "evaluation")):
        for item in pools[half]:
            for text, n in parts(item):
                found = word.findall(text.lower())
                for i in range(max(len(found) - n + 1, 1)):
                    run = hash((n, *found[i : i + n]))
                    sides[run] |= flag
                    if len(owners[run]) <= COMMON:
                        owners[run].add(item.split_key)
    leaks = [run for run, seen in sides.items() if seen == 3 and 0 < len(owners[run]) <= COMMON]
    assert leaks == []


def test_stored_groups_are_those_of_the_pinned_packages(assets_dir):
    text = registry.overlap_report()
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert {key: (keys[0], float(fraction)) for fraction, *keys in lines for key in keys} == stored_groups()


@pytest.mark.parametrize("name", BOTH)
def test_halves_have_their_share(name, assets_dir):
    counts = Counter({half: len(load_samples(name, half)) for half in ("calibration", "evaluation")})
    share = counts["evaluation"] / counts.total()
    # Groups move whole, so a binomial bound would be too tight for the small corpora.
    assert abs(share - SOURCES[name].evaluation_fraction) < 0.1


def test_every_filter_value_has_both_halves(assets_dir):
    for subject in SOURCES["mmlu"].filters["subject"]:
        for half in ("calibration", "evaluation"):
            assert len(load_samples(f"mmlu:subject={subject}", half)) >= 30, (subject, half)


def test_a_task_keeps_its_side_in_all_languages(assets_dir):
    halves = {half: load_samples("mbpp:language=all", half) for half in ("calibration", "evaluation")}
    tasks = {half: {s.split_key for s in samples} for half, samples in halves.items()}
    assert tasks["calibration"].isdisjoint(tasks["evaluation"])
    assert len(tasks["calibration"] | tasks["evaluation"]) == 500
    languages = {half: {s.language for s in samples} for half, samples in halves.items()}
    assert len(languages["calibration"]) == len(languages["evaluation"]) == 17


def test_guard_knows_the_packaged_evaluation_items(assets_dir):
    item = load_samples("gsm8k", "evaluation")[3]
    copied = sample(f"Here is a nice problem. {item.question} Think!", id="copied")
    found = evaluation_index().find([copied, sample("It was a dark and stormy night.")])
    assert [(o.calibration_id, o.evaluation_id, o.evaluation_source) for o in found] == [("copied", item.id, "gsm8k")]
    assert len(words(found[0].text)) == 13
