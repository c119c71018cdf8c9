"""Check that every local link of a built site, whose folder is the argument, leads somewhere.

Sphinx answers for references between its sources; this reads what it wrote, templates, images and
raw HTML included. Links to other sites are ``sphinx-build -b linkcheck``'s.
"""
# SPDX-License-Identifier: BSD-3-Clause

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.anchors, self.links = {""}, set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value)
            elif name in ("href", "src") and value and not value.startswith("data:"):
                self.links.add(value)


site = Path(sys.argv[1]).resolve()
pages = {
    path: Page(path.read_text("utf-8"))
    for path in site.rglob("*.html")
    if path.parent.name != "_static"
}
broken, n_links = [], 0
for path, page in pages.items():
    for link in sorted(page.links):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        n_links += 1
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        anchor = unquote(parts.fragment)
        if not target.exists() or (target in pages and anchor not in pages[target].anchors):
            broken.append(f"{path.relative_to(site)}: {link}")
print(*broken, sep="\n", end="\n" if broken else "")
print(f"{len(pages)} pages, {n_links} links, {len(broken)} broken")
sys.exit(bool(broken) or not n_links)
