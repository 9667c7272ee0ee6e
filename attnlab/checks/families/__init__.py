"""The promises: one file a family, found by their presence."""
