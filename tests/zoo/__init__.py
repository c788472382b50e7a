"""Tiny random pipelines of real diffusers classes, built without any download."""
