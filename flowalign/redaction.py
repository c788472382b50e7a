"""Secrets are blotted out of everything that is shown or written.

A secret is told by its form: tokens of known services, credentials inside a URL, bearer headers,
and values of arguments whose name says that they are secret.
"""

from __future__ import annotations

import re

BLOT = "***"

_NAME = r"(?:api[_-]?key|access[_-]?key|secret|token|password|passwd|credentials?)"
_SECRET_NAME = re.compile(rf"(?:^|[_-]){_NAME}$", re.IGNORECASE)
# Group 1 is kept in front of the blot.
_FORMS = tuple(
    re.compile(pattern)
    for pattern in (
        r"()\bhf_[A-Za-z0-9]{16,}",
        r"()\bsk-[A-Za-z0-9_-]{16,}",
        r"()\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
        r"()\bgh[pousr]_[A-Za-z0-9]{20,}",
        r"()\bgithub_pat_[A-Za-z0-9_]{20,}",
        r"()\bxox[abpr]-[A-Za-z0-9-]{10,}",
        r"()\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*",
        r"(://)[^/\s:@]+:[^/\s@]+(?=@)",
    )
)
_NAMED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(\bbearer )[A-Za-z0-9._~+/-]{8,}=*",
        r"(\bcookie: *)\S.*",
        rf"(--[a-z-]*{_NAME}(?:=| +))\S+",
        rf"(\b[a-z_-]*{_NAME}=)[^\s&;,'\"]+",
        rf"(\b[a-z_-]*{_NAME}[\"']?: *)[\"'][^\"']+[\"']",
    )
)


def names_a_secret(key: str) -> bool:
    """Whether a key of this name holds a secret: `api_key`, `hf_token`, never `api_key_env`."""
    return _SECRET_NAME.search(key) is not None


def holds_a_secret(text: str) -> bool:
    """Whether `text` contains something of a secret's form."""
    return any(form.search(text) for form in _FORMS)


def redact(text: str) -> str:
    """`text` with every secret replaced by `***`."""
    for form in (*_FORMS, *_NAMED):
        text = form.sub(rf"\g<1>{BLOT}", text)
    return text
