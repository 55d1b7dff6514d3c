"""The documentation's search, made to work from disk, where a browser refuses workers and fetched files.

A hook of mkdocs: the index that its search plugin writes becomes a script, and ``docs/search.js`` asks it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority


def on_config(config: Any) -> Any:
    """Take the plugin's own script, which needs a server, out of the pages."""
    config.extra_javascript[:] = ["search/lunr.js", "search/search_index.js", "search.js"]
    return config


@event_priority(-100)  # after the plugin has written its index
def on_post_build(config: Any) -> None:
    """Write the index as a script."""
    folder = Path(config.site_dir) / "search"
    (folder / "search_index.js").write_text(
        f"const searchIndex = {(folder / 'search_index.json').read_text('utf-8')};\n", "utf-8"
    )
    for name in ("main.js", "worker.js", "search_index.json"):
        (folder / name).unlink()
