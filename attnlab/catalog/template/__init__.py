"""Template: say in a line what it is."""

from .template import TemplateAttention as TemplateAttention
