"""Retention (Sun et al. 2023)."""

from .retention import Retention as Retention
