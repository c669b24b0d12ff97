"""Models larger than memory: blocks that lie in files, and are in memory one at a time.

The blocks of a streamed model are on torch's ``meta`` device, where a tensor has a shape and no content.
:meth:`StreamedBlocks.resident` reads one from the checkpoint's safetensors files, and lets go of it afterwards. A block
that was changed meanwhile is written to a file of its own: the checkpoint stays what it is. Everything that is no
block, which is embeddings, last norm and head, stays in main memory.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from cola_lib.errors import ColaError, OutputError
from cola_lib.models.checkpoint import TensorFiles, read_tensor, stored_as


class _Written:
    """Changed weights of a block, in a file that goes with the last reference to it."""

    def __init__(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix=".block.", suffix=".partial", dir=folder)
        os.close(handle)
        self.path = Path(path)
        weakref.finalize(self, self.path.unlink, missing_ok=True)
        _save({name: tensor.cpu() for name, tensor in tensors.items()}, self.path)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _check_present(present: set[int], index: int, name: str, *_: Any) -> None:
    """Refuse to run a block whose weights are not there. Not a method: a cycle would keep files that nobody needs."""
    if index not in present:
        raise ColaError(
            f"{name} of a streamed model is not in memory: only the walk runs such a model, block by block; load it "
            "without streaming for anything else"
        )


class StreamedBlocks:
    """The blocks of a model, of which one is in memory at a time."""

    def __init__(
        self, blocks: Sequence[tuple[str, nn.Module]], files: TensorFiles, device: torch.device, scratch: Path
    ) -> None:
        self.device, self.scratch = device, scratch
        self._files = files
        self._names = [name for name, _ in blocks]
        self._blocks = [block for _, block in blocks]
        self._absent = [dict(block.state_dict()) for block in self._blocks]
        self._written: dict[int, _Written] = {}
        self._present: set[int] = set()
        self._dirty: set[int] = set()
        for index, (name, block) in enumerate(blocks):
            for part in block.children():
                part.register_forward_pre_hook(partial(_check_present, self._present, index, name))

    @contextmanager
    def resident(self, index: int) -> Iterator[nn.Module]:
        """Have a block in memory."""
        block = self._blocks[index]
        # assign: a meta tensor cannot be copied into; the parameter itself is replaced.
        block.load_state_dict(dict(self._read_block(index, self.device)), assign=True)
        self._present.add(index)
        try:
            yield block
            if index in self._dirty:
                self._written[index] = self._write(index)
        finally:
            self._present.discard(index)
            self._dirty.discard(index)
            block.load_state_dict(self._absent[index], assign=True)

    def changed(self) -> None:
        """Say that the weights of what is resident are no longer those that were read."""
        self._dirty |= self._present

    def _read_one(self, index: int, key: str, device: torch.device | str = "cpu") -> Tensor:
        like, name = self._absent[index][key], f"{self._names[index]}.{key}"
        if index in self._written:
            return read_tensor(self._written[index].path, name, like, device)
        return self._files.read(name, like, device)

    def _read_block(self, index: int, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
        for key in self._absent[index]:
            yield key, self._read_one(index, key, device)

    def _write(self, index: int) -> _Written:
        name = self._names[index]
        tensors = {f"{name}.{key}": tensor for key, tensor in self._blocks[index].state_dict().items()}
        try:
            return _Written(tensors, self.scratch)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"{self.scratch}: {name} could not be written there ({error}); free some space"
            ) from error

    def tensors(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Name the blocks' tensors, each with what reads it."""
        for index, name in enumerate(self._names):
            for key in self._absent[index]:
                yield f"{name}.{key}", partial(self._read_one, index, key)

    def kept(self) -> dict[int, _Written]:
        """Name the files of the changed blocks, for :meth:`put_back`: they stay as long as this is held."""
        return dict(self._written)

    def put_back(self, kept: dict[int, _Written]) -> None:
        """Make the changed blocks those that :meth:`kept` named."""
        self._written = dict(kept)

    def save(self, model: PreTrainedModel, rest: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
        """Write an ordinary checkpoint, a file for each block."""
        n_files = len(self._blocks) + 1
        files = [folder / f"model-{number:05d}-of-{n_files:05d}.safetensors" for number in range(1, n_files + 1)]
        # Configuration and generation settings, and which of two tied tensors is stored, are transformers' to say.
        model.save_pretrained(folder, state_dict=rest, max_shard_size="1000GB")
        (folder / SAFE_WEIGHTS_NAME).rename(files[0])
        for index, path in enumerate(files[1:]):
            self._save_block(index, path, dtype)
        shard_of: dict[str, str] = {}
        size = 0
        for path in files:
            with safe_open(path, framework="pt") as file:
                shard_of |= dict.fromkeys(file.keys(), path.name)
        for name, tensor in model.state_dict().items():
            size += tensor.numel() * dtype.itemsize if name in shard_of else 0
        listing = {"metadata": {"total_size": size}, "weight_map": dict(sorted(shard_of.items()))}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")

    def _save_block(self, index: int, path: Path, dtype: torch.dtype) -> None:
        if index not in self._written or any(like.dtype != dtype for like in self._absent[index].values()):
            names = self._names[index]
            _save({f"{names}.{key}": stored_as(dtype, tensor, key) for key, tensor in self._read_block(index)}, path)
            return
        try:
            os.link(self._written[index].path, path)  # a changed block is on the disk already
        except OSError:  # another disk, or one without links
            shutil.copyfile(self._written[index].path, path)


def open_streamed(
    where: str,
    config: PretrainedConfig,
    blocks: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    scratch: str | os.PathLike[str] | None = None,
) -> tuple[PreTrainedModel, StreamedBlocks]:
    """Load all of a model but its blocks."""
    from accelerate import init_empty_weights

    files = TensorFiles(where)
    with init_empty_weights(include_buffers=False):  # buffers are computed and not read: rotary frequencies, say
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    if model.can_generate():
        with suppress(OSError):  # a checkpoint need not have one; one that is there has been read before
            model.generation_config = GenerationConfig.from_pretrained(where)
    module_list = model.get_decoder().get_submodule(blocks)
    prefix = next(name for name, module in model.named_modules() if module is module_list)
    named = [(f"{prefix}.{index}", block) for index, block in enumerate(module_list)]
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    if renamed := set(model.state_dict()) - tied - set(files.paths):
        raise ColaError(
            f"{where} has no tensor {min(renamed)!r}, which a streamed model needs under this name; "
            "load it whole, save it with save_pretrained, and stream that"
        )
    _load_rest(model, files, f"{prefix}.")
    folder = Path(tempfile.gettempdir() if scratch is None else scratch)
    return model, StreamedBlocks(named, files, device, folder)


def _load_rest(model: PreTrainedModel, files: TensorFiles, blocks: str) -> None:
    """Read what is no block. Of tied tensors one is enough, whichever it is."""
    rest = {name: like for name, like in model.state_dict().items() if not name.startswith(blocks)}
    absent = {name for name in rest if name not in files.paths}
    loaded = {name: files.read(name, like) for name, like in rest.items() if name not in absent}
    model.load_state_dict(loaded, strict=False, assign=True)
    model.tie_weights(missing_keys=absent, recompute_mapping=False)
