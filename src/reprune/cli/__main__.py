"""`python -m reprune.cli`."""

from reprune.cli.app import app

app(prog_name="reprune")
