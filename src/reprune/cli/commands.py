"""How every command ends: what it printed, or one line that says what was wrong, and an exit code.

0: done. 1: it could not be done. 2: the command was not understood. 130: stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from reprune.cli.narrow import fit_terminal
from reprune.core.errors import RepruneError
from reprune.core.extras import lacking
from reprune.recipes.run.interrupts import stopped_by_user


class Commands(TyperGroup):
    """Commands of which nothing but a message and an exit code reaches the user, unless `--debug` is among the words.

    So is every error of the libraries below: what they raise is not for somebody who typed a command.
    """

    _debug = False

    def main(self, args: Any = None, *, standalone_mode: bool = True, **options: Any) -> Any:  # type: ignore[override]
        """Run the program."""
        try:
            code = super().main(args, standalone_mode=False, **fit_terminal(self), **options)
        except typer.Abort:
            code = 130
        except Exception as error:
            if self._debug or not hasattr(error, "format_message"):
                raise
            code = _usage(error)
        if standalone_mode:
            sys.exit(code or 0)
        return code

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words; `--debug` may stand anywhere."""
        if "--debug" in args:
            args = ["--debug", *(word for word in args if word != "--debug")]
        self._debug = "--debug" in args
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            with self._own_warnings():
                found = super().invoke(ctx)
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except (KeyboardInterrupt, SystemExit) as error:
            if not stopped_by_user(error):
                raise
            typer.echo("Stopped: nothing is kept. The same command starts anew.", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            # What Typer says of words that it does not understand, and a reader that has left.
            if hasattr(error, "format_message") or getattr(error, "errno", None) == errno.EPIPE or self._debug:
                raise
            _silence_output()
            code = getattr(error, "exit_code", 1)
            typer.echo(("" if code == 130 else "Error: ") + self._in_options(_said(error)), err=True)
            raise typer.Exit(code) from None
        return found

    @contextmanager
    def _own_warnings(self) -> Iterator[None]:
        """Within this context, warnings of reprune are one line each; those of other libraries are for `--debug`."""

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category.__module__.startswith("reprune."):
                typer.echo(f"Warning: {self._in_options(str(message))}", err=True)

        with warnings.catch_warnings():
            if not self._debug:
                # TensorFlow writes about its kernels as soon as it is imported.
                os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
                warnings.showwarning = show
            yield

    def _in_options(self, text: str) -> str:
        """A message of the library in the words of the command line: `ratio=2` is `--ratio 2`."""
        options: dict[str, str] = {option.name: option.opts[0] for option in _options(self)}

        def said(found: re.Match[str]) -> str:
            value = found["value"]
            if value == "lambda ":
                return f"{options[found['name']]} MODULE:NAME, a function such as {value}"
            return options[found["name"]] + (f" {value}" if value else "")

        names = "|".join(sorted((name for name in options if name), key=len, reverse=True))
        return re.sub(rf"(?<![\w.(])(?P<name>{names})=(?P<value>lambda |['\w\[]?)", said, text)


class ListCommand(TyperCommand):
    """A command whose repeatable options take every word up to the next option, as shells write out unquoted globs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words: `--train a b` is `--train a --train b`."""
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        words: list[str] = []
        current: str | None = None
        for word in args:
            if word.startswith("-"):
                current = word if word in lists else None
            elif current is not None and words[-1] != current:
                words.append(current)
            words.append(word)
        rest: list[str] = super().parse_args(ctx, words)
        return rest


def _options(command: Any) -> Iterator[Any]:
    """The options of a command and of all below it."""
    yield from (parameter for parameter in command.params if parameter.opts[0].startswith("--"))
    for below in getattr(command, "commands", {}).values():
        yield from _options(below)


def _usage(error: Any) -> int:
    """Say what was not understood; returns the exit code."""
    context, message = getattr(error, "ctx", None), " ".join(error.format_message().split())
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = "reprune" if context is None else context.command_path
        end = "" if message.endswith((".", "?")) else "."
        typer.echo(f"Error: {message}{end} {command} --help shows what there is.", err=True)
    return int(error.exit_code)


def _said(error: Exception) -> str:
    if isinstance(error, RepruneError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        advice = lacking(error.name, "This command")
        if advice:
            return advice
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return f"{type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)"


def _silence_output() -> None:
    """Where the output itself cannot be written, do not try again on the way out."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
