"""`python -m reprune`: the command line."""

from reprune_command import main

if __name__ == "__main__":
    main()
