"""The parts of the benchmarks, one module each: a ``TITLE``, a description (``ABOUT``) and ``rows(timing)``."""
