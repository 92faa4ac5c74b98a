"""What the tests of the report read from a page."""

from html.parser import HTMLParser

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>{{ 7*7 }}'


class Tables(HTMLParser):
    """Rows of every table as lists of (text, data-value), by caption."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.tags, self.cell, self.caption = {}, [], None, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.rows, self.caption = [], ""
        elif tag == "caption":
            self.cell = ["", None]
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.cell = ["", dict(attrs).get("data-value")]
            self.rows[-1].append(self.cell)

    def handle_endtag(self, tag):
        if tag == "caption":
            self.caption = self.cell[0]
        if tag in ("td", "th", "caption"):
            self.cell = None
        if tag == "table":
            self.tables.setdefault(self.caption.split()[0], []).append(self.rows)

    def handle_data(self, data):
        if self.cell is not None:
            self.cell[0] += data
