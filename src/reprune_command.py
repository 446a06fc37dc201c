"""The `reprune` command. A module of its own: Ctrl-C is understood while the package itself is still being imported."""

import sys


def main() -> None:
    """Run the command line; it ends the process."""
    try:
        from reprune.cli.app import app

        app(prog_name="reprune")
    except KeyboardInterrupt:  # Inside of commands they see to it themselves (`reprune.cli.commands`).
        print("Stopped: nothing is kept. The same command starts anew.", file=sys.stderr)  # noqa: T201
        sys.exit(130)
