"""The conformance suite: what an attention layer promises, measured.

``check_attention(MyAttention)`` raises an AssertionError that lists every broken promise; ``attnlab check`` prints
them all as a table. A promise is a function in ``promises/``, found by its presence.
"""

from attnlab.checks.capabilities import Broken as Broken
from attnlab.checks.capabilities import NotClaimed as NotClaimed
from attnlab.checks.layer import Subject as Subject
from attnlab.checks.registry import Measure as Measure
from attnlab.checks.registry import Promise as Promise
from attnlab.checks.registry import every_promise as every_promise
from attnlab.checks.registry import promise as promise
from attnlab.checks.report import Report as Report
from attnlab.checks.report import Row as Row
from attnlab.checks.suite import check_attention as check_attention
