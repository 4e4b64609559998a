"""The page: one file that loads nothing else; its headers allow only its own style and script."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

CONTENT = resources.files("fieldmark.serve").joinpath("page.html").read_bytes()


def _hashes(tag: str) -> str:
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), CONTENT, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(block).digest()).decode() for block in blocks]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def under(root_path: str) -> bytes:
    """The page for a server whose paths begin with this; see ``start.serve``."""
    return CONTENT.replace(b' data-root=""', f' data-root="{root_path}"'.encode(), 1)


POLICY = (
    "default-src 'none'; "
    f"script-src {_hashes('script')}; style-src {_hashes('style')}; "
    "img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
