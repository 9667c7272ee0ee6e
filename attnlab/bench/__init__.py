"""Latency and peak memory of mechanisms and networks, by interleaved rounds with a control."""
