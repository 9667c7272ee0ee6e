"""Template: one line that describes the mechanism."""

from .template import TemplateAttention as TemplateAttention
