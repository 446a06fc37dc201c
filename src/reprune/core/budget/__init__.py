"""How much is to be removed, and what it costs: units, parameters, MACs, milliseconds."""
