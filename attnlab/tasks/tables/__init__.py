"""Tables: reading files, column types, and rows as sequences of cells."""
