"""What is measured: a file each, found by its presence.

A part has a ``TITLE``, says in ``ABOUT`` what it compares, and yields its ``rows(pace)``.
"""
