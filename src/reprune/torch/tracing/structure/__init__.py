"""From a recording to a structure: layers, widths, groups."""
