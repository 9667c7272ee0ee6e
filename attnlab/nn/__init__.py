"""The contract of a mechanism, and the parts that mechanisms are built from."""
