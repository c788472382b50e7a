"""Imported as `flowalign.configs`; see CONTRIBUTING.md."""

if __name__ != "flowalign.configs":
    raise ImportError(f"this folder is flowalign.configs; it was imported as {__name__!r}")
