"""The tokenizer of the tests, which is the library's own for examples."""

from cola_lib.models import byte_tokenizer

__all__ = ["byte_tokenizer"]
