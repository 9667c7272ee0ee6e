"""The fast exact computations that mechanisms share, and linear recurrences as functions.

The recurrences take the arguments of flash-linear-attention, and run wherever PyTorch runs; see
`attnlab.ops.scan.functions`.
"""

from attnlab.ops.scan.functions import delta_rule as delta_rule
from attnlab.ops.scan.functions import gated_delta_rule as gated_delta_rule
from attnlab.ops.scan.functions import gla as gla
from attnlab.ops.scan.functions import kda as kda
from attnlab.ops.scan.functions import linear_attention as linear_attention
from attnlab.ops.scan.functions import retention as retention
from attnlab.ops.scan.functions import rwkv7 as rwkv7
from attnlab.ops.scan.functions import simple_gla as simple_gla
