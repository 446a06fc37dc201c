"""How fast models and files are: the command `bench`."""
