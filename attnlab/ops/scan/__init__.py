"""Linear recurrences over keys and values, in three equivalent forms."""

from attnlab.ops.scan.linear import linear_scan as linear_scan
from attnlab.ops.scan.normalized import NormalizedScan as NormalizedScan
from attnlab.ops.scan.scan_map import RecurrenceMap as RecurrenceMap
from attnlab.ops.scan.scan_map import ScanMap as ScanMap
from attnlab.ops.scan.sequences import Recurrence as Recurrence
from attnlab.ops.scan.sequences import Sequences as Sequences
