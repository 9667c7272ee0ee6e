"""How each peer is asked: one file a package, a class a layer, with what its own documentation says to give it."""
