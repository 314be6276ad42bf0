"""Read a page as a browser would see it: tags, links, text; an inline event handler is an error."""

import html.parser


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action", "poster")
        ]
        assert not [k for k, _ in attrs if k.startswith("on")], attrs

    def handle_data(self, data):
        self.text.append(data)
