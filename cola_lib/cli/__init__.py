"""The command line: the library's functions, one command each.

Everything heavy is imported inside the command that needs it, so that ``cola --help`` answers at once, and
everything that can be refused is refused before any work is done. Results go to standard output, progress
and messages to standard error. Exit status: 0 done, 1 a notebook failed, 2 bad input.
"""

from cola_lib.cli import book, compress, curate, data, evaluate, sweep
from cola_lib.cli.app import app, main

for command in (  # in the order of `cola --help`
    data.assets,
    data.sources,
    curate.curate,
    curate.inspect,
    compress.compress,
    evaluate.evaluate,
    sweep.sweep,
    book.notebook,
    book.claims,
    book.pack,
):
    app.command()(command)

__all__ = ["app", "main"]
