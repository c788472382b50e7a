"""Imported as `flowalign.pipelines`; see CONTRIBUTING.md."""

if __name__ != "flowalign.pipelines":
    raise ImportError(f"this folder is flowalign.pipelines; it was imported as {__name__!r}")
