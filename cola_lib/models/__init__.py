"""Models: loading, and one table of architectures."""

from cola_lib.models.architectures import ARCHITECTURES, Architecture, InputGroup, Producer, architecture_of
from cola_lib.models.loading import LanguageModel, fingerprint_tokenizer, load_model, resolve_device, resolve_dtype
from cola_lib.models.rounding import InputRounding
from cola_lib.models.tiny import byte_tokenizer, tiny_model

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "InputGroup",
    "InputRounding",
    "LanguageModel",
    "Producer",
    "architecture_of",
    "byte_tokenizer",
    "fingerprint_tokenizer",
    "load_model",
    "resolve_device",
    "resolve_dtype",
    "tiny_model",
]
