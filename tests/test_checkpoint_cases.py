"""Checkpoints that are damaged or unusual as users' are: refused before any work, in memory and streamed alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cola_lib.calibration import CalibrationSet, random_tokens_set
from cola_lib.calibration.formats import chat
from cola_lib.compress import compress, method_spec, save_checkpoint
from cola_lib.curation import curate
from cola_lib.data import Sample
from cola_lib.errors import ColaError, DataError, NumericsError, SpecError
from cola_lib.evaluate import row_nll
from cola_lib.export import export_quantized
from cola_lib.models import byte_tokenizer, load_model
from tests.test_cli import assert_refused, run
from tests.tiny_models import tiny_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MARK = "raise SystemExit('code of the checkpoint ran')\n"


def write(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    model = tiny_model(vocab_size=len(byte_tokenizer()), pad_token_id=None, num_hidden_layers=2)
    model.to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def model(sound, tmp_path) -> Path:
    """A copy of a sound checkpoint, to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def configure(folder: Path, name: str = "config.json", **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rename(folder: Path, change) -> None:
    """Write the tensors under other names; a name that becomes ``None`` is dropped."""
    tensors = {change(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file({k: t for k, t in tensors.items() if k}, folder / WEIGHTS, metadata={"format": "pt"})


def drop(name: str):
    return lambda folder: rename(folder, lambda own: None if own == name else own)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def cast(dtype: torch.dtype):
    def change(folder: Path) -> None:
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def settings(**values: object):
    return lambda folder: configure(folder, **values)


def content(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def without(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def shard_gone(folder: Path) -> None:
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    shards = {name: "b.safetensors" if name.startswith("lm_head") else "a.safetensors" for name in names}
    (folder / INDEX).write_text(json.dumps({"weight_map": shards}))


def own_code(folder: Path) -> None:
    configure(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    (folder / "mine.py").write_text(MARK)


def own_tokenizer(folder: Path) -> None:
    configure(folder, "tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.T", None]})
    (folder / "mine.py").write_text(MARK)


TENSORS = {
    "tensor missing": (drop("model.layers.1.mlp.down_proj.weight"), "model.layers.1.mlp.down_proj.weight is missing"),
    "norm missing": (drop("model.norm.weight"), "model.norm.weight is missing"),
    "head missing": (drop("lm_head.weight"), "save the head"),
    "PEFT's prefix": (lambda f: rename(f, lambda own: f"base_model.model.{own}"), "merge the adapter"),
    "LoRA's base layer": (
        lambda f: rename(f, lambda own: own.replace("q_proj.weight", "q_proj.base_layer.weight")),
        "merge the adapter",
    ),
    "tensor of another kind": (lambda f: rename(f, lambda own: own.replace("up_proj", "w3")), "unexpected"),
    "fewer blocks": (settings(num_hidden_layers=1), "blocks beyond num_hidden_layers = 1"),
    "more blocks": (settings(num_hidden_layers=3), "model.layers.2"),
    "another shape": (settings(intermediate_size=40), "has shape"),
    "another vocabulary": (settings(vocab_size=7), "has shape"),
}
"""What does not fit the configuration, and a word of the error."""

FILES = {
    "adapter beside a model": (content("adapter_config.json", '{"base_model_name_or_path": "a/b"}'), "merge"),
    "adapter alone": (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "merge"),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    "damaged tokenizer": (content("tokenizer.json", "{}"), "tokenizer"),
    "pickle": (pickled, "only safetensors"),
    "empty weights": (content(WEIGHTS, ""), "could not be loaded"),
    "an index without its shard": (shard_gone, "b.safetensors"),
    "an index that is none": (lambda f: (without(WEIGHTS)(f), content(INDEX, "[]")(f)), "could not be loaded"),
    "integers": (cast(torch.int8), "torch.int8"),
    "8-bit floats": (cast(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "no heads": (settings(num_attention_heads=0), "config.json"),
    "negative size": (settings(hidden_size=-32), "negative"),
    "text for a size": (settings(hidden_size="32"), "hidden_size"),
    "unknown dtype": (settings(dtype="float17"), "float17"),
    "unknown attention": (settings(_attn_implementation="fast"), "fast"),
    "attention that is a number": (settings(_attn_implementation=3), "could not be loaded"),
    "attention from the hub": (settings(_attn_implementation="org/kernel"), "never run"),
    "deep configuration": (content("config.json", '{"a":' * 100_000), "config.json"),
    "configuration that is a list": (content("config.json", "[]"), "config.json"),
    "damaged generation settings": (content("generation_config.json", "{"), "generation_config.json"),
    "own code": (own_code, "unknown model type 'mine'"),
    "own code for the tokenizer": (own_tokenizer, "never run"),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", [*TENSORS, *FILES])
def test_what_does_not_fit_is_refused_with_its_reason(model, monkeypatch, case, stream):
    def work(*args, **kwargs):
        raise AssertionError("weights were read")

    damage, word = (TENSORS | FILES)[case]
    damage(model)
    monkeypatch.setattr("cola_lib.models.loading.open_streamed", work)
    monkeypatch.setattr("builtins.input", work)  # transformers asks there whether to run code
    monkeypatch.setattr("torch.nn.Module.to", work)
    with pytest.raises(ColaError) as refused:
        load_model(model, device="cpu", stream=stream)
    assert word in str(refused.value) and "trust_remote_code" not in str(refused.value)


@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=["whole", "streamed"])
@pytest.mark.parametrize("case", ["head missing", "no heads", "pickle", "own code"])
def test_the_command_line_refuses_in_one_line_and_writes_nothing(model, case, stream):
    damage, word = (TENSORS | FILES)[case]
    damage(model)
    out = model.parent / "out"
    assert_refused(run("compress", "--model", model, "--method", "rtn", "--bits", 4, "--out", out, *stream), word)
    assert sorted(path.name for path in model.parent.iterdir()) == ["model"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes(model, monkeypatch, raised, stream):
    monkeypatch.setattr("cola_lib.models.loading.check_tensors", lambda *_: (_ for _ in ()).throw(raised))
    with pytest.raises(raised):
        load_model(model, stream=stream)


class Panic(BaseException):
    """Like pyo3's, which is no Exception."""


@pytest.mark.parametrize(
    ("raised", "word"), [(MemoryError(), "not enough memory"), (Panic("index 7"), "Panic: index 7")]
)
def test_whatever_is_raised_becomes_one_line(model, monkeypatch, raised, word):
    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr("cola_lib.models.loading.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(ColaError, match=word):
        load_model(model)


def test_a_damaged_chat_template_is_one_line(model):
    (model / "chat_template.jinja").write_text("{% for %}")
    sample = Sample("1", "2 + 2? 4", "mine", question="2 + 2?", answer="4")
    with pytest.raises(ColaError, match="chat template"):
        chat(sample, load_model(model).tokenizer)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_code_beside_a_known_model_is_neither_run_nor_named_in_the_result(model, tmp_path, stream):
    configure(model, auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    configure(model, "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.Tokenizer", None]})
    (model / "mine.py").write_text(MARK)
    load_model(model, stream=stream).save(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.py"))
    assert not any("auto_map" in path.read_text() for path in (tmp_path / "out").glob("*.json"))


def test_weights_are_those_of_the_usual_file(model, tmp_path):
    """Another file that the configuration names is not taken in one path and passed over in the other."""
    before = load_model(model).fingerprint
    save_file({name: tensor + 1 for name, tensor in load_file(model / WEIGHTS).items()}, model / "other.safetensors")
    configure(model, transformers_weights="other.safetensors")
    assert load_model(model).fingerprint == load_model(model, stream=True).fingerprint == before


# ---------------------------------------------------------------------------------------------------- data types


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, torch.float32])
def test_a_result_has_the_data_type_of_its_source(tmp_path, source, computed, stream):
    lm = load_model(write(tmp_path / "model", source), device="cpu", dtype=computed, stream=stream)
    report = compress(lm, method_spec("magnitude", sparsity=0.5), progress=False)
    save_checkpoint(lm, report, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert {tensor.dtype for path in files for tensor in load_file(path).values()} == {source}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(source).removeprefix("torch.")
    assert lm.dtype == getattr(torch, computed)  # saving changes nothing in memory
    assert load_model(tmp_path / "out", stream=stream).stored == source


def test_the_files_count_and_not_what_the_configuration_says(model):
    configure(model, dtype="bfloat16")
    assert load_model(model).stored == torch.float32


def test_both_paths_store_the_same_numbers(tmp_path):
    source = write(tmp_path / "model", torch.bfloat16)
    for stream in (False, True):
        lm = load_model(source, device="cpu", stream=stream)
        save_checkpoint(lm, compress(lm, method_spec("rtn", group_size=16), progress=False), tmp_path / str(stream))
    whole, streamed = (
        {name: t for path in (tmp_path / str(stream)).glob("*.safetensors") for name, t in load_file(path).items()}
        for stream in (False, True)
    )
    assert set(whole) == set(streamed) and all(torch.equal(whole[name], streamed[name]) for name in whole)


def test_tied_weights_stay_tied_when_they_are_cast(tmp_path):
    tied = tiny_model(vocab_size=len(byte_tokenizer()), pad_token_id=None)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    load_model(tmp_path / "model", device="cpu").save(tmp_path / "out")
    assert set(load_file(tmp_path / "out" / WEIGHTS)) == set(load_file(tmp_path / "model" / WEIGHTS))


def test_a_weight_that_the_source_cannot_hold_is_an_error(tmp_path):
    lm = load_model(write(tmp_path / "model", torch.float16), device="cpu", dtype="float32")
    lm.blocks[1].mlp.up_proj.weight.data[0, 0] = 1e6
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.up_proj"):
        lm.save(tmp_path / "out")


def test_packing_takes_the_data_type_of_the_source_when_asked(tmp_path):
    lm = load_model(write(tmp_path / "model", torch.float16), device="cpu", dtype="float32")
    spec = method_spec("rtn", bits=4, group_size=16, symmetric=True)
    report = compress(lm, spec, progress=False, keep_codes=True)
    assert export_quantized(lm, report, tmp_path / "out", dtype="auto").dtype == "float16"


# ---------------------------------------------------------------------------------------------------- ids and lengths


@pytest.fixture
def added(model) -> Path:
    """A checkpoint whose tokenizer got tokens that the embedding did not."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    return model


def rows_of(lm, text: str) -> CalibrationSet:
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    return CalibrationSet(ids, torch.ones_like(ids, dtype=torch.bool), ((),), ("mine",), "mine", 0, "pad")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_tokens_beyond_the_embedding_are_named(added, stream):
    lm = load_model(added, device="cpu", stream=stream)
    n_rows = lm.model.get_input_embeddings().num_embeddings
    with pytest.raises(DataError, match="<think>") as refused:
        compress(lm, method_spec("wanda"), rows_of(lm, "a <think> b"), progress=False)
    assert f"{n_rows:,} rows" in str(refused.value) and "</think>" not in str(refused.value)
    compress(lm, method_spec("wanda"), rows_of(lm, "a plain row"), progress=False)  # the others are fine


def test_tokens_beyond_the_embedding_are_named_wherever_a_model_runs(added):
    lm = load_model(added, device="cpu")
    with pytest.raises(DataError, match="</think>"):
        row_nll(lm, rows_of(lm, "a </think> b"), progress=False)
    with pytest.raises(DataError, match="<think>"):
        lm.model.generate(torch.tensor([lm.tokenizer("<think>")["input_ids"]]), max_new_tokens=1)


@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=["whole", "streamed"])
def test_the_command_line_names_a_padding_token_beyond_the_embedding(added, tmp_path, stream):
    options = ["--source", "openbookqa", "--n-samples", 2, "--seq-len", 128, "--layout", "pad", "--method", "wanda"]
    assert_refused(run("compress", "--model", added, *options, "--out", tmp_path / "out", *stream), "[PAD]")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_rows_longer_than_the_context_are_refused(sound, stream):
    lm = load_model(sound, device="cpu", stream=stream)  # its context holds 128
    compress(lm, method_spec("wanda"), random_tokens_set(lm.tokenizer, 1, 128), progress=False)
    with pytest.raises(SpecError, match="at most 128"):
        compress(lm, method_spec("wanda"), random_tokens_set(lm.tokenizer, 1, 129), progress=False)


def test_curating_and_the_command_line_refuse_rows_longer_than_the_context(sound, tmp_path):
    lm = load_model(sound, device="cpu")
    with pytest.raises(SpecError, match="at most 128"):
        curate(lm, "random", ["openbookqa"], n_samples=1, seq_len=129)
    for command in (["compress", "--method", "wanda"], ["curate", "--strategy", "random"]):
        options = ["--model", sound, "--source", "openbookqa", "--seq-len", 129, "--out", tmp_path / "out"]
        assert_refused(run(*command, *options), "--seq-len")


def test_a_model_whose_configuration_has_no_limit_takes_any_length(sound, monkeypatch):
    lm = load_model(sound, device="cpu")
    monkeypatch.setattr(lm.model, "config", SimpleNamespace())
    lm.check_length(10**6)
