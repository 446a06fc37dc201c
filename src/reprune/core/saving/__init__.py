"""Plans and weights on disk: digests, whole files, folders."""
