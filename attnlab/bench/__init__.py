"""Latency and peak memory of layers and networks, by interleaved rounds with a control.

from attnlab.bench import measure
groups = measure({"multihead": network, "linear": other}, batch)
"""

from attnlab.bench.measurement import Group as Group
from attnlab.bench.measurement import Row as Row
from attnlab.bench.measurement import measure as measure
