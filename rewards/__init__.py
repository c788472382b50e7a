"""Imported as `flowalign.rewards`; see CONTRIBUTING.md."""

if __name__ != "flowalign.rewards":
    raise ImportError(f"this folder is flowalign.rewards; it was imported as {__name__!r}")
