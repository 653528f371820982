"""Docstrings to HTML: the reStructuredText, numpydoc and Google habits that real docstrings have, and nothing else.

The reader is forgiving: whatever it does not know stays as text, and no input is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape

Resolve = Callable[[str, bool], str | None]  # (name, whether it is surely a name) -> href

UNDERLINE = re.compile(r"^([=\-~^\"*#+`.])\1{2,}$")
GOOGLE = re.compile(
    r"^(Args|Arguments|Parameters|Params|Keyword [Aa]rg(?:ument)?s|Attributes|Returns?|Yields?|Raises|Warns|Examples?"
    r"|Notes?|Warnings?|See [Aa]lso|References|Shapes?|Inputs?|Outputs?|Todo)(::?)$"
)
DIRECTIVE = re.compile(r"^\.\. ([\w:-]+)::\s*(.*)$")
BULLET = re.compile(r"^(\s*)(?:([-*+•])|(\d{1,3}|#|[a-z])[.)])\s+(?=\S)")
FIELD = re.compile(
    r"^:(param|parameter|type|arg|argument|keyword|raises?|returns?|rtype|yields?|var|ivar)\b([^:]*):\s*"
)
TERM = re.compile(
    r"^(\*{0,2}[A-Za-z_][\w.]*(?:\s*,\s*\*{0,2}[A-Za-z_][\w.]*)*)\s*(\([^()]*(?:\([^()]*\)[^()]*)*\))?\s*:\s+(.*)$"
)
TABLE = re.compile(r"^(=+(\s+=+)+|\+[-=]+(\+[-=]+)+\+)$")
INLINE = re.compile(
    r"``(?P<literal>[^`]+?)``"
    r"|(?::[a-z:]+:)`(?P<role>[^`]+?)`"
    r"|`(?P<title>[^`<>]+?)\s*<(?P<url>[^`<>\s]+)>`_{0,2}"
    r"|`(?P<name>[^`\n]+?)`_{0,2}"
    r"|\*\*(?P<strong>[^*\s](?:[^*]*[^*\s])?)\*\*"
    r"|(?<![\w*])\*(?P<em>[^*\s](?:[^*]*[^*\s])?)\*(?![\w*])"
    r"|(?P<bare>https?://[^\s<>\"')\]]+)"
)
ADMONITIONS = {"note", "warning", "tip", "important", "caution", "seealso", "attention", "hint", "danger"}
VERSIONS = {
    "versionadded": "Added in version",
    "versionchanged": "Changed in version",
    "deprecated": "Deprecated since",
}
CODE = {
    "code",
    "code-block",
    "sourcecode",
    "testcode",
    "doctest",
    "ipython",
    "plot",
    "parsed-literal",
    "math",
    "prompt",
}
SILENT = {"currentmodule", "module", "index", "highlight", "contents", "testsetup", "image", "figure", "toctree", "_"}
SENTENCE_END = re.compile(r"(?<![A-Z])(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)[.!?](?=\s+[A-Z`\"'(]|\s*$)")


def inline(text: str, resolve: Resolve) -> str:
    """Markup inside a paragraph: code, cross references, emphasis. URLs are shown, not linked: the web ends here."""
    done: list[str] = []
    position = 0
    for match in INLINE.finditer(text):
        done.append(escape(text[position : match.start()], quote=False))
        done.append(_inline(match, resolve))
        position = match.end()
    done.append(escape(text[position:], quote=False))
    return "".join(done)


def _inline(match: re.Match[str], resolve: Resolve) -> str:
    kind, text = match.lastgroup, match[match.lastgroup or 0]
    if kind == "strong":
        return f"<strong>{escape(text, quote=False)}</strong>"
    if kind == "em":
        return f"<em>{escape(text, quote=False)}</em>"
    if kind == "bare":
        return f'<span class="url">{escape(text, quote=False)}</span>'
    if kind == "url":
        title = escape(match["title"], quote=False)
        return f'{title} (<span class="url">{escape(text, quote=False)}</span>)'
    target = text
    if kind == "role" and (explicit := re.fullmatch(r"(.+?)\s*<(.+)>", text, re.DOTALL)):
        text, target = explicit[1], explicit[2]
    elif kind == "role" and text[:1] in "~!":
        target = text[1:]
        text = target.rpartition(".")[2] if text[0] == "~" else target
    called = target.endswith("()")
    href = resolve(target.strip().removesuffix("()"), kind == "role" or called)
    code = f"<code>{escape(text, quote=False)}</code>"
    return f'<a href="{href}">{code}</a>' if href else code


def render(doc: str, resolve: Resolve, level: int = 2) -> str:
    """HTML of a cleaned docstring; its own headings begin at `<h{level}>`."""
    return "\n".join(_Blocks(resolve, level).render(doc.split("\n"), depth=0))


class _Blocks:
    def __init__(self, resolve: Resolve, level: int) -> None:
        self.resolve, self.level = resolve, min(level, 6)

    def text(self, lines: list[str]) -> str:
        return inline(" ".join(line.strip() for line in lines), self.resolve)

    def heading(self, text: str) -> str:
        return f"<h{self.level}>{inline(text, self.resolve)}</h{self.level}>"

    def render(self, lines: list[str], depth: int, terms: bool = False) -> list[str]:
        """Blocks of equally indented lines. `terms`: a list of parameters, `name (type): text` or `name : type`."""
        if depth > 8:
            return [_pre(lines)]
        html: list[str] = []
        at, count = 0, len(lines)
        while at < count:
            line = lines[at]
            stripped = line.strip()
            if not stripped:
                at += 1
                continue
            if line[0] == " ":  # an indented block that nothing announced: code or a quotation
                end = _block_end(lines, at)
                block = _dedent(lines[at:end])
                html += self.render(block, depth + 1, terms) if terms or _is_prose(block) else [_pre(block)]
                at = end
            elif at + 1 < count and _underlined(stripped, lines[at + 1]):
                html.append(self.heading(stripped))
                end = _section_end(lines, at + 2)
                html += self.render(lines[at + 2 : end], depth + 1, terms=_names_things(stripped))
                at = end
            elif UNDERLINE.match(stripped) and at + 2 < count and UNDERLINE.match(lines[at + 2].strip()):
                at += 1  # an overline: the heading follows
            elif UNDERLINE.match(stripped):
                html.append("<hr>")
                at += 1
            elif stripped.startswith(">>>"):
                end = at
                while end < count and lines[end].strip():
                    end += 1
                html.append(_pre(lines[at:end]))
                at = end
            elif stripped.startswith("```"):
                end = next((i for i in range(at + 1, count) if lines[i].strip().startswith("```")), count)
                html.append(_pre(lines[at + 1 : end]))
                at = end + 1
            elif TABLE.match(stripped):
                end = at
                while end < count and lines[end].strip():
                    end += 1
                html.append(_pre(lines[at:end]))
                at = end
            elif stripped.startswith(".. "):
                end = _block_end(lines, at + 1)
                html += self.directive(stripped, _dedent(lines[at + 1 : end]), depth)
                at = end
            elif (google := GOOGLE.match(stripped)) and (end := _block_end(lines, at + 1)) > at + 1:
                block = _dedent(lines[at + 1 : end])
                html.append(self.heading(google[1]))
                if google[2] == "::":
                    html.append(_pre(block))
                else:
                    html += self.render(block, depth + 1, terms=_names_things(google[1]))
                at = end
            elif FIELD.match(stripped):
                at = self.definitions(lines, at, html, depth, self.field)
            elif BULLET.match(line):
                at = self.bullets(lines, at, html, depth)
            elif (terms and TERM.match(line)) or (
                at + 1 < count and _indent(lines, at + 1) and self.is_term(line, terms)
            ):
                at = self.definitions(lines, at, html, depth, self.term if terms else self.plain_term)
            else:
                at = self.paragraph(lines, at, html)
        return html

    def paragraph(self, lines: list[str], at: int, html: list[str]) -> int:
        end = at + 1
        while end < len(lines) and lines[end].strip() and not _starts_block(lines, end):
            end += 1
        block = lines[at:end]
        literal = block[-1].rstrip().endswith("::")
        if literal:
            block = [*block[:-1], block[-1].rstrip()[:-1]]
        if any(line.strip(" :") for line in block):
            html.append(f"<p>{self.text(block)}</p>")
        if literal:
            start = end
            end = _block_end(lines, start)
            if any(line.strip() for line in lines[start:end]):
                html.append(_pre(_dedent(lines[start:end])))
        return end

    def directive(self, head: str, body: list[str], depth: int) -> list[str]:
        match = DIRECTIVE.match(head)
        if match is None:
            return [] if head.startswith((".. _", ".. |")) else self.footnote(head, body)
        name, argument = match[1].lower(), match[2]
        options = 0
        while options < len(body) and re.match(r"^:[\w-]+:", body[options]):
            options += 1
        body = body[options:]
        if name.rpartition(":")[2] in CODE:
            return [_pre([argument, *body] if name == "math" and argument else body)]
        if name in SILENT:
            return []
        inner = self.render(body, depth + 1)
        if name in VERSIONS:
            text = f"<em>{VERSIONS[name]} {escape(argument, quote=False)}</em>"
            return [f'<div class="version"><p>{text}</p>', *inner, "</div>"]
        if argument:
            inner = [f"<p>{inline(argument, self.resolve)}</p>", *inner]
        if name in ADMONITIONS:
            title = "See also" if name == "seealso" else name.capitalize()
            return [f'<div class="admonition {name}"><p class="title">{title}</p>', *inner, "</div>"]
        return inner

    def footnote(self, head: str, body: list[str]) -> list[str]:
        text = head.removeprefix(".. ")
        return [f'<p class="footnote">{self.text([text, *body])}</p>'] if text.startswith("[") else []

    def bullets(self, lines: list[str], at: int, html: list[str], depth: int) -> int:
        first = BULLET.match(lines[at])
        assert first is not None
        tag = "ul" if first[2] else "ol"
        html.append(f"<{tag}>")
        while at < len(lines) and (match := BULLET.match(lines[at])) and bool(match[2]) == bool(first[2]):
            end = at + 1
            while end < len(lines) and (not lines[end].strip() or lines[end][0] == " "):
                end += 1
            rest = lines[at + 1 : end]
            if any(line.strip() for line in rest):
                inner = self.render([lines[at][match.end() :], *_dedent(rest)], depth + 1)
                if len(inner) == 1 and inner[0].startswith("<p>"):
                    inner = [inner[0][3:-4]]
                html.append(f"<li>{''.join(inner)}</li>")
            else:
                html.append(f"<li>{inline(lines[at][match.end() :].strip(), self.resolve)}</li>")
            at = end
        html.append(f"</{tag}>")
        return at

    def is_term(self, line: str, terms: bool) -> bool:
        """A line over an indented block is a term when it reads like one: no sentence, no trailing colons."""
        if terms:
            return not line.rstrip().endswith("::")
        return len(line) <= 60 and not line.rstrip().endswith((".", ":", ",", ";")) and line.count(" ") <= 6

    def definitions(
        self,
        lines: list[str],
        at: int,
        html: list[str],
        depth: int,
        split: Callable[[str], tuple[str, str] | None],
    ) -> int:
        html.append("<dl>")
        first = at
        while at < len(lines):
            if not lines[at].strip():
                following = at
                while following < len(lines) and not lines[following].strip():
                    following += 1
                if following == len(lines) or not self.continues(lines, following, split):
                    break
                at = following
            pair = split(lines[at].strip())
            if pair is None or lines[at][0] == " " or (at > first and not self.continues(lines, at, split)):
                break
            end = _block_end(lines, at + 1)
            term, text = pair
            inner = self.render([*([text] if text else []), *_dedent(lines[at + 1 : end])], depth + 1)
            html.append(f"<dt>{term}</dt><dd>{''.join(inner)}</dd>")
            at = end
        html.append("</dl>")
        return at

    def continues(self, lines: list[str], at: int, split: Callable[[str], tuple[str, str] | None]) -> bool:
        if lines[at][0] == " " or _starts_block(lines, at, terms=True):
            return False
        pair = split(lines[at].strip())
        return pair is not None and (bool(pair[1]) or (at + 1 < len(lines) and _indent(lines, at + 1) > 0))

    def term(self, line: str) -> tuple[str, str] | None:
        """`x (int): text`, `x : int` or `x`."""
        if match := TERM.match(line):
            if match[2] or not line[match.end(1) :].startswith(" "):  # Google
                kind = f" <em>{inline(match[2], self.resolve)}</em>" if match[2] else ""
                return f"<code>{escape(match[1], quote=False)}</code>{kind}", match[3]
            return f"<code>{escape(match[1], quote=False)}</code> : <em>{inline(match[3], self.resolve)}</em>", ""
        return inline(line, self.resolve), ""

    def plain_term(self, line: str) -> tuple[str, str] | None:
        return inline(line, self.resolve), ""

    def field(self, line: str) -> tuple[str, str] | None:
        match = FIELD.match(line)
        if match is None:
            return None
        name = match[2].strip()
        code = f" <code>{escape(name, quote=False)}</code>" if name else ""
        return f"{match[1]}{code}", line[match.end() :]


def summary(doc: str, limit: int = 240) -> str:
    """First sentence of a docstring as one line of plain text, "" when it has none that reads like one."""
    for paragraph in doc.split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        if len(lines) > 1 and UNDERLINE.match(lines[1].strip()):  # a title
            lines = lines[2:]
        text = " ".join(" ".join(lines).split())
        if not text or text.startswith((">>>", ".. ", "::", "```", "@")) or UNDERLINE.match(text):
            continue
        first = lines[0].strip()
        if (
            GOOGLE.match(first)
            or FIELD.match(first)
            or BULLET.match(first)
            or ((term := TERM.match(first)) and term[2])
        ):
            return ""  # it begins with its parameters
        end = SENTENCE_END.search(text)
        sentence = text[: end.end()] if end else text.rstrip(":")
        return sentence if len(sentence) <= limit else sentence[: limit - 2].rpartition(" ")[0] + " …"
    return ""


def plain(text: str) -> str:
    """Text with roles and double quotes reduced to single backquotes: :func:`~a.b` and ``a.b`` become `a.b`."""
    return re.sub(r"`+([^`]+)`+", r"`\1`", re.sub(r":[a-z]+(?::[a-z]+)*:`[~!]?", "`", text))


def _pre(lines: list[str]) -> str:
    text = "\n".join(_dedent(lines)).strip("\n")
    return f"<pre><code>{escape(text, quote=False)}</code></pre>"


def _dedent(lines: list[str]) -> list[str]:
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line[margin:] for line in lines] if margin else lines


def _indent(lines: list[str], at: int) -> int:
    """Indentation of line `at`, 0 when it is blank."""
    return len(lines[at]) - len(lines[at].lstrip()) if lines[at].strip() else 0


def _block_end(lines: list[str], at: int) -> int:
    """End of the run of blank and indented lines that starts at `at`."""
    while at < len(lines) and (not lines[at].strip() or lines[at][0] == " "):
        at += 1
    return at


def _section_end(lines: list[str], at: int) -> int:
    while at < len(lines) and not (
        lines[at].strip()
        and lines[at][0] != " "
        and at + 1 < len(lines)
        and _underlined(lines[at].strip(), lines[at + 1])
    ):
        at += 1
    return at


def _underlined(text: str, following: str) -> bool:
    following = following.rstrip()
    return bool(UNDERLINE.match(following)) and not UNDERLINE.match(text) and len(following) >= min(len(text), 4) - 1


def _starts_block(lines: list[str], at: int, terms: bool = False) -> bool:
    line, stripped = lines[at], lines[at].strip()
    if stripped.startswith((">>>", "```", ".. ")) or TABLE.match(stripped) or (not terms and FIELD.match(stripped)):
        return True
    if at + 1 < len(lines) and _underlined(stripped, lines[at + 1]):
        return True
    if GOOGLE.match(stripped) and at + 1 < len(lines) and _indent(lines, at + 1) > 0:
        return True
    return not terms and line[0] != " " and bool(BULLET.match(line)) and stripped[:1] in "-*+•"


def _names_things(section: str) -> bool:
    first = section.lower().removeprefix("other ").removeprefix("keyword ").rstrip(":").split()
    return bool(first) and first[0] in {
        "parameters", "params", "args", "arguments", "returns", "return", "yields", "yield", "raises", "warns",
        "attributes", "receives", "methods",
    }  # fmt: skip


def _is_prose(block: list[str]) -> bool:
    """Whether an unannounced indented block is text (a quotation) and not code: long lines of mostly words."""
    text = " ".join(line.strip() for line in block if line.strip())
    if len(text) < 60 or any(line.startswith(" ") for line in block if line.strip()):
        return False
    words = re.findall(r"[A-Za-z]{2,}[.,;:]?(?=\s|$)", text)
    return sum(map(len, words)) > 0.7 * (len(text) - text.count(" "))
