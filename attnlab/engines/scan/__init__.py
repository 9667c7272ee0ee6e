"""Linear recurrences over keys and values, in three forms that give the same numbers."""

from attnlab.engines.scan.core import ScanCore as ScanCore
from attnlab.engines.scan.linear import linear_scan as linear_scan
