"""kvjax: what a transformer must remember while it generates."""

__version__ = '0.1.0'
