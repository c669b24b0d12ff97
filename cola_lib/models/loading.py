"""Load a causal language model with its tokenizer."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from cola_lib import assets
from cola_lib.errors import ColaError, DataError, SpecError, UnknownNameError, translated
from cola_lib.fingerprint import fingerprint, fingerprint_tensors
from cola_lib.models.architectures import Architecture, architecture_of
from cola_lib.models.checkpoint import check_tensors, read_config, refuse_adapter, stored_as
from cola_lib.models.rounding import InputRounding
from cola_lib.models.streaming import StreamedBlocks, open_streamed

log = logging.getLogger(__name__)

EMBEDDED = ("smollm2-135m",)
"""Names of the models that come with the library's assets."""


@dataclass
class LanguageModel:
    """A causal language model, its tokenizer, and what is known of its kind.

    Attributes
    ----------
    model : PreTrainedModel
        In evaluation mode, without gradients.
    tokenizer : PreTrainedTokenizerBase
        May lack a padding token: batches are padded by mask, so its id never matters.
    name : str
        As the user gave it.
    architecture : Architecture
        The model type's row in the table.
    streamed : StreamedBlocks or None
        What brings the blocks of a model that is larger than memory; ``None`` when all of it is in memory.
    stored : torch.dtype or None
        Data type of the checkpoint that the model was read from, and of what :meth:`save` writes. ``None`` for a
        model without a checkpoint, which is saved in its own type.

    Examples
    --------
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> lm.name, lm.block_name(0), lm.dtype
    ('tiny', 'model.layers.0', torch.float32)
    >>> before = lm.fingerprint
    >>> _ = lm.blocks[0].mlp.up_proj.weight.data.mul_(2)
    >>> lm.weights_changed()
    >>> lm.fingerprint == before
    False
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    architecture: Architecture
    streamed: StreamedBlocks | None = None
    stored: torch.dtype | None = None
    _fingerprint: str | None = field(default=None, repr=False)
    _rounding: dict[str, tuple[InputRounding, RemovableHandle]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # Wherever ids come from, they meet the model here; a device would fail without saying which they are.
        self.model.get_input_embeddings().register_forward_pre_hook(partial(_check_ids, self.tokenizer))

    @property
    def device(self) -> torch.device:
        """Device that computes: where the blocks are, or come to when they are streamed."""
        return self.home if self.streamed is None else self.streamed.device

    @property
    def home(self) -> torch.device:
        """Device of the embeddings, and of what waits between two blocks: main memory when blocks are streamed."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the parameters."""
        return self.model.dtype

    @property
    def decoder(self) -> nn.Module:
        """The model without its language-model head: token ids to final hidden states."""
        return self.model.get_decoder()

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, first to last."""
        blocks = self.decoder.get_submodule(self.architecture.blocks)
        assert isinstance(blocks, nn.ModuleList), f"{self.architecture.blocks} of {self.name} is no list of blocks"
        return blocks

    def block_name(self, index: int) -> str:
        """Qualified name of a block, for example ``"model.layers.3"``.

        Parameters
        ----------
        index : int
            Position of the block, from 0.
        """
        block = self.blocks[index]
        return next(name for name, module in self.model.named_modules() if module is block)

    @contextmanager
    def resident(self, index: int) -> Iterator[nn.Module]:
        """Have a block's weights in memory, on :attr:`device`.

        Parameters
        ----------
        index : int
            Position of the block, from 0.

        Yields
        ------
        nn.Module
            The block. Of a streamed model, what is changed meanwhile lasts if :meth:`weights_changed` is called
            before the block is left, and is lost otherwise.
        """
        if self.streamed is None:
            yield self.blocks[index]
            return
        with self.streamed.resident(index) as block:
            yield block

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what comes out for a text, kept once known.

        That is the configuration's architecture, every weight, how inputs are rounded, and how the tokenizer reads.
        """
        if self._fingerprint is None:
            settings = self.model.config.to_dict()
            shape = {k: v for k, v in settings.items() if k in _ARCHITECTURAL or (k in _RARE and v is not None)}
            tensors: dict[str, Any] = dict(self.model.state_dict())
            if self.streamed is not None:
                tensors |= dict(self.streamed.tensors())
            facts = {"config": shape, "weights": fingerprint_tensors(tensors.items())}
            if self._rounding:  # a model that rounds nothing keeps the name it had before there was rounding
                facts["input_rounding"] = {name: asdict(rounding) for name, rounding in self.input_rounding.items()}
            if self.tokenizer is not None:
                facts["tokenizer"] = self.tokenizer_fingerprint
            self._fingerprint = fingerprint(facts)
        return self._fingerprint

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Hash of how the tokenizer reads, see :func:`fingerprint_tokenizer`; kept once known."""
        return fingerprint_tokenizer(self.tokenizer)

    @property
    def input_rounding(self) -> dict[str, InputRounding]:
        """How linear layers round their inputs when the model runs, by qualified name; those that do not are absent."""
        return {name: rounding for name, (rounding, _) in self._rounding.items()}

    def round_inputs(self, rounding: Mapping[str, InputRounding]) -> None:
        """Make linear layers round their inputs whenever the model runs, in place of what rounded before.

        Parameters
        ----------
        rounding : mapping of str to InputRounding
            By qualified name of the layer. Layers that it does not name round no longer; an empty one ends it all.

        Notes
        -----
        Rounding is no weight: ``model.save_pretrained`` and ``model.state_dict`` do not know of it. What the library
        itself writes, it refuses to write without it.
        """
        if rounding == self.input_rounding:
            return
        for name, (known, handle) in list(self._rounding.items()):
            if rounding.get(name) != known:
                handle.remove()
                del self._rounding[name]
        for name, new in rounding.items():
            if name not in self._rounding:
                # First, so that whoever watches the layer sees the input that it multiplies.
                handle = self.model.get_submodule(name).register_forward_pre_hook(new.hook, prepend=True)
                self._rounding[name] = new, handle
        self._fingerprint = None

    def weights_changed(self) -> None:
        """Forget the fingerprint, because a weight is no longer what it was.

        To be called while the block is :meth:`resident`.
        """
        self._fingerprint = None
        if self.streamed is not None:
            self.streamed.changed()

    def weights(self) -> Weights:
        """Keep hold of the weights as they are, without a copy: tensors are to be replaced, never written into."""
        in_memory = {name: p.data for name, p in self.model.named_parameters() if not p.is_meta}
        files = {} if self.streamed is None else self.streamed.kept()
        return Weights(in_memory, files, self.input_rounding, self.fingerprint)

    def put_back(self, weights: Weights) -> None:
        """Make the weights what they were, and how inputs are rounded.

        Parameters
        ----------
        weights : Weights
            From :meth:`weights`.
        """
        for name, parameter in self.model.named_parameters():
            if name in weights.in_memory:
                parameter.data = weights.in_memory[name]
        if self.streamed is not None:
            self.streamed.put_back(weights.files)
        self.round_inputs(weights.rounding)
        self._fingerprint = weights.fingerprint

    def check_length(self, n_tokens: int) -> None:
        """Refuse rows that are longer than the model's context.

        Parameters
        ----------
        n_tokens : int
            Of the longest row. Any number passes where the configuration sets no limit.
        """
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is not None and n_tokens > longest:
            raise SpecError(
                f"rows of {n_tokens:,} tokens do not fit model {self.name!r}, whose context holds {longest:,}; "
                f"make rows with a seq_len (--seq-len) of at most {longest}"
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write model and tokenizer as a checkpoint that transformers loads, in the data type of its source.

        Parameters
        ----------
        folder : path
            A streamed model's has a file for each block, and is written without the model in memory.

        Raises
        ------
        NumericsError
            If a weight is too large for that data type; the message names it.
        """
        folder, dtype = Path(folder), self.stored or self.dtype
        cast: dict[int, Tensor] = {}  # tensors that share memory still do, so that tied weights are seen to be tied
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.model.state_dict().items():
            if not tensor.is_meta:
                if tensor.data_ptr() not in cast:
                    cast[tensor.data_ptr()] = stored_as(dtype, tensor, name)
                tensors[name] = cast[tensor.data_ptr()]
        if self.streamed is None:
            self.model.save_pretrained(folder, state_dict=tensors)
        else:
            self.streamed.save(self.model, tensors, dtype, folder)
        self.tokenizer.save_pretrained(folder)
        if dtype != self.dtype:  # transformers writes down the type that computes
            path = folder / "config.json"
            settings = json.loads(path.read_text(encoding="utf-8")) | {"dtype": str(dtype).removeprefix("torch.")}
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _check_ids(tokenizer: PreTrainedTokenizerBase | None, embedding: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse token ids that the embedding has no row for."""
    (ids,), n_rows = inputs, embedding.get_parameter("weight").shape[0]
    if ids.numel() and (int(ids.max()) >= n_rows or int(ids.min()) < 0):
        beyond = ids[(ids < 0) | (ids >= n_rows)].unique().tolist()
        names = beyond if tokenizer is None else tokenizer.convert_ids_to_tokens(beyond)
        shown = ", ".join(f"{name!r} ({id_})" for name, id_ in zip(names[:5], beyond, strict=False))
        raise DataError(
            f"the tokenizer makes tokens that the model's embedding of {n_rows:,} rows does not have: {shown}; "
            "use the tokenizer that the model was trained with, or give the model rows for them "
            "(resize_token_embeddings) and train those"
        )


@dataclass(frozen=True)
class Weights:
    """All weights of a model at one moment, and how it rounded inputs, to be put back."""

    in_memory: dict[str, Tensor]
    files: dict[int, Any]
    rounding: dict[str, InputRounding]
    fingerprint: str


_ARCHITECTURAL = frozenset(
    "model_type hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim hidden_act hidden_activation rms_norm_eps rope_parameters rope_theta sliding_window "
    "layer_types attn_logit_softcapping final_logit_softcapping tie_word_embeddings vocab_size".split()
)

_READ = "The naïve 3,141.59  don't\n\tdef f(x_1): return x**2 != 0  # «déjà vu» Ω 北京 🙂\r\nHTTPError\u00a0end "
"""Words, numbers, blanks, code and scripts, of which two tokenizers hardly make the same."""

_RARE = frozenset(
    "attention_multiplier residual_multiplier embedding_multiplier logits_scaling query_pre_attn_scalar clip_qkv "
    "no_rope_layers partial_rotary_factor use_bidirectional_attention".split()
)
"""Settings that few architectures have, and that change what a model computes from the same weights."""


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash a tokenizer: its vocabulary, and what it makes of a text in which tokenizers differ."""
    ids = tokenizer(_READ, add_special_tokens=True)["input_ids"]
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return fingerprint({"vocabulary": tokenizer.get_vocab(), "ids": ids, "ends": ends})


def resolve_device(device: str = "auto") -> torch.device:
    """Turn a device name into a device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise SpecError(f"device {device!r} is not a torch device; use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise SpecError(f"device {device!r} was asked for, and torch sees no CUDA device; use --device cpu")
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Turn a data type's name into a data type."""
    if isinstance(dtype, torch.dtype):
        return dtype
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in named:
        raise UnknownNameError("dtype", dtype, [*named, "auto"])
    return named[dtype]


def _location(name_or_path: str) -> str:
    """Where transformers finds the model: a folder, or a name on the hub."""
    if name_or_path in EMBEDDED:
        return str(assets.model_dir())
    path = Path(name_or_path).expanduser()
    if path.exists():
        if not (path / "config.json").is_file():
            refuse_adapter(str(path))
            raise ColaError(f"{path}: no config.json there, so it is not a model checkpoint")
        return str(path)
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if looks_local or "/" not in name_or_path:
        hint = "a model is one of these names, a folder with a checkpoint, or a hub name such as org/model"
        raise UnknownNameError("model", name_or_path, EMBEDDED, hint)
    return name_or_path


def config_of(name_or_path: str | os.PathLike[str]) -> PretrainedConfig:
    """Read a model's configuration and no weight of it; names and errors are those of :func:`load_model`."""
    name = os.fspath(name_or_path)
    where = _location(name)
    try:
        return read_config(where)
    except (OSError, ValueError) as error:
        raise ColaError(f"model {name!r}: its configuration could not be read from {where}: {error}") from error


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    stream: bool = False,
    scratch: str | os.PathLike[str] | None = None,
) -> LanguageModel:
    """Load a model by name.

    Parameters
    ----------
    name_or_path : str or path
        ``"smollm2-135m"``, a folder with a Hugging Face checkpoint, or a name on the hub.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    dtype : str or torch.dtype
        ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    stream : bool
        Leave the blocks in the checkpoint's safetensors files, for models larger than memory: the walk, and with it
        :func:`~cola_lib.compress.compress`, has one in memory at a time. Such a model can be compressed and saved, and
        nothing else.
    scratch : path, optional
        Folder for the blocks of a streamed model that are changed: as large as the model, on a disk and not in
        memory. Default: the system's folder for temporary files.

    Returns
    -------
    LanguageModel
        In evaluation mode, without gradients. Code from the checkpoint is never run.

    Raises
    ------
    UnknownNameError
        If the name, the model type or the dtype is not known.
    ColaError
        If the checkpoint cannot be read, with transformers' reason; if its tensors are not those of its config.json;
        if it has no safetensors files or no tokenizer, is an adapter, or is quantized already.

    Examples
    --------
    >>> from cola_lib.models import load_model, tiny_model
    >>> tiny_model().save("my-checkpoint")
    >>> lm = load_model("my-checkpoint", device="cpu")
    >>> len(lm.blocks), lm.dtype
    (2, torch.float32)
    """
    name = os.fspath(name_or_path)
    where = _location(name)
    target = resolve_device(device)
    number = resolve_dtype(dtype, target)
    with translated(f"model {name!r}: its configuration cannot be used; correct config.json or generation_config.json"):
        config = read_config(where)
        architecture = architecture_of(config)
    with translated(f"model {name!r}: its tokenizer cannot be loaded; copy the files of the one it was trained with"):
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        tokenizer.init_kwargs.pop("auto_map", None)
    with translated(f"model {name!r} could not be loaded from {where}"):
        stored = check_tensors(where, config)
        streamed = None
        if stream:
            model, streamed = open_streamed(
                where, config, architecture.blocks, device=target, dtype=number, scratch=scratch
            )
        else:
            model = AutoModelForCausalLM.from_pretrained(
                where, config=config, dtype=number, use_safetensors=True, trust_remote_code=False
            )
            nn.Module.to(model, target)  # in place; transformers' own is typed by its first argument
    model.eval().requires_grad_(False)
    log.debug("loaded %s: %s on %s", name, type(model).__name__, target)
    return LanguageModel(model, tokenizer, name, architecture, streamed, stored)
