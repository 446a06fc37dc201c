"""What the site does to pages: the start page is the README, and links to files outside docs/ are plain text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./(?:examples|tests|README)[^)]*|CONTRIBUTING\.md)\)")
_COMMENT = re.compile(r"^<!-- setup\n.*?^-->\n", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The text of a page as the site shows it."""
    if page.file.src_uri == "index.md":
        readme = Path(config.config_file_path).with_name("README.md").read_text(encoding="utf-8")
        markdown = readme.replace("](docs/", "](")
    return _COMMENT.sub("", _OUTSIDE.sub(r"\1", markdown))
