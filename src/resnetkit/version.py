"""The one place where the version stands; everything else reads it from here."""

__version__ = "0.1.0"
