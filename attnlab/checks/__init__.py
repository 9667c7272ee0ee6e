"""The conformance suite: measured checks of the properties that an attention layer should have.

``check_attention(MyAttention)`` raises an AssertionError that lists every failed check; ``attnlab check`` prints all of
them as a table. A check is a function in ``families/``; every module there is imported.
"""

from attnlab.checks.capabilities import CheckFailed as CheckFailed
from attnlab.checks.capabilities import NotApplicable as NotApplicable
from attnlab.checks.layer_under_test import LayerUnderTest as LayerUnderTest
from attnlab.checks.registry import Check as Check
from attnlab.checks.registry import Measurement as Measurement
from attnlab.checks.registry import all_checks as all_checks
from attnlab.checks.registry import check as check
from attnlab.checks.report import Report as Report
from attnlab.checks.report import Row as Row
from attnlab.checks.suite import check_attention as check_attention
