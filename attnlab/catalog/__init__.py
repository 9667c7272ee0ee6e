"""The catalog of mechanisms: names, cards, options, and the template of a new one."""
