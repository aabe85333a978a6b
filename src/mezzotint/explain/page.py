"""A story as one page: data, style and script in a single file that asks the network for nothing."""

import html
import json
from importlib import resources
from typing import Any  # Any: JSON

NOTEBOOK_HEIGHT = 720  # CSS pixels of the frame in a notebook

# Nothing is loaded, nothing is sent: pictures are in the page, and there is no place that it could ask.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main id="story" class="story"><noscript>This page draws its data with a script; please allow it.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script type="module">
{script}
renderStory(document.getElementById("story"), JSON.parse(document.getElementById("data").textContent));
</script>
</body>
</html>
"""


def page(title: str, data: dict[str, Any]) -> str:  # Any: JSON
    """The page of a story's data."""
    safe = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"policy": POLICY, "title": html.escape(title), "style": part("story.css"), "script": part("story.js")}
    return TEMPLATE.format(data=safe, **parts)


def shown_in_notebook(whole: str) -> str:
    """The page in a frame of its own, so that neither disturbs the other."""
    return (
        f'<iframe srcdoc="{html.escape(whole)}" style="width:100%;height:{NOTEBOOK_HEIGHT}px;border:0" '
        'sandbox="allow-scripts" title="mezzotint explain"></iframe>'
    )


def part(name: str) -> str:
    """A file that this page shares with the server's."""
    return resources.files("mezzotint").joinpath("web", name).read_text("utf-8").strip()
