"""`python -m reprune`: the command line."""

from reprune.cli.app import app

if __name__ == "__main__":
    app(prog_name="reprune")
