"""Pages as HTML. Every page has the frame of a documentation site: navigation, breadcrumb, sidebar, content, footer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from bloomery.worlds.installed_docs import prose
from bloomery.worlds.installed_docs.paths import module_path, source_path
from bloomery.worlds.installed_docs.scan import Item, read_source

if TYPE_CHECKING:
    from bloomery.worlds.installed_docs.site import Entry, InstalledDocs

SIBLINGS = 12  # neighbours shown on either side in a sidebar
IMPORTED = 40  # links to imported modules shown on a module's page
CODE_TOKEN = re.compile(
    r"(?P<comment>#[^\n]*)"
    r"|(?P<string>(?:\b[rbufRBUF]{1,2})?(?:\"\"\"(?:[^\\]|\\.)*?\"\"\"|'''(?:[^\\]|\\.)*?'''"
    r"|\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'))"
    r"|(?P<keyword>\b(?:def|class|return|if|elif|else|for|while|import|from|try|except|finally|with|as|in|is|not|and|or"
    r"|lambda|yield|raise|pass|None|True|False|await|async)\b)"
    r"|(?P<name>(?<![.\w&])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)",
    re.DOTALL,
)
STYLE = """\
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--link:#2563a8}
@media(prefers-color-scheme:dark){:root{--link:#8ab4f8}}
*{box-sizing:border-box}body{margin:0;font:16px/1.6 system-ui,sans-serif}a{color:var(--link);text-decoration:none}
a:hover{text-decoration:underline}header,footer{padding:.7rem 1.5rem;border-bottom:1px solid var(--line)}
footer{border:0;border-top:1px solid var(--line);font-size:.85rem}header nav a{margin-right:1.2rem}
.layout{display:grid;grid-template-columns:16rem minmax(0,1fr);max-width:78rem;margin:auto}
aside{padding:1rem;border-right:1px solid var(--line);font-size:.9rem;overflow-wrap:anywhere}
aside ul{list-style:none;padding:0}
main{padding:1rem 2rem}pre{background:var(--soft);padding:.8rem;overflow:auto;border-radius:4px}
code{font:.9em ui-monospace,monospace}table{border-collapse:collapse}td,th{padding:.3rem .8rem .3rem 0;text-align:left;
border-bottom:1px solid var(--line);vertical-align:top}.signature{font-size:1.05rem;overflow-wrap:anywhere}
.breadcrumb,.pager{font-size:.9rem}.pager{display:flex;justify-content:space-between;margin-top:2rem}
.admonition,.version{border-left:3px solid var(--link);padding-left:1rem}.title{font-weight:bold;margin:0}
.c{color:#6a8759}.s{color:#a5673f}.k{font-weight:600}dt{margin-top:.5rem}
@media(max-width:50rem){.layout{display:block}aside{border:0}}
"""


def page(site: InstalledDocs, entry: Entry) -> tuple[str, str]:
    """(title, HTML) of the page that `entry` describes."""
    title, body = {
        "home": _home, "search": _search, "index": _index, "module": _module, "class": _class, "function": _function,
        "source": _source,
    }[entry.kind](site, entry)  # fmt: skip
    return title, _frame(site, entry, title, body)


def search_results(site: InstalledDocs, query: str) -> str:
    """The search page with the results for `query`."""
    entry = site.entries["/search"]
    rows = [f"<li>{_link(site.names[name], name, code=True)}</li>" for name in site.search(query)]
    found = f"<p>{len(rows)} results for <em>{escape(query, quote=False)}</em>.</p><ul>{''.join(rows)}</ul>"
    title, body = _search(site, entry)
    return _frame(site, entry, title, body + found)


def not_found(site: InstalledDocs, path: str) -> str:
    """The 404 page."""
    entry = site.entries["/"]
    body = (
        f"<h1>Page not found</h1><p>There is no page at <code>{escape(path, quote=False)}</code>. "
        f'The <a href="/index/">index</a> lists every name, and <a href="/search">search</a> finds parts of names.</p>'
    )
    return _frame(site, entry, "Page not found", body)


# -- the frame --------------------------------------------------------------------------------------------------------


def _frame(site: InstalledDocs, entry: Entry, title: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title, quote=False)} — {site.version} documentation</title>
<link rel="stylesheet" href="/static/docs.css">
</head>
<body>
<header><nav>
<a href="/">{site.version} documentation</a> <a href="/index/">Index</a> <a href="/search">Search</a>
</nav></header>
<div class="layout">
<aside>{_sidebar(site, entry)}</aside>
<main>
{_breadcrumb(site, entry)}
<article>
{body}
</article>
{_pager(site, entry)}
</main>
</div>
<footer><p>Generated from the installed source files of {site.version}. {len(site.entries):,} pages.
Found a mistake? The text of this page comes from the docstrings of its module.</p>
<p><a href="/">Home</a> · <a href="/index/">Index</a> · <a href="#">Back to top</a></p></footer>
</body>
</html>
"""


def _breadcrumb(site: InstalledDocs, entry: Entry) -> str:
    crumbs = ['<a href="/">Home</a>']
    if entry.kind == "index":
        crumbs.append('<a href="/index/">Index</a>')
    parts = entry.parent.split(".")
    for count in range(1, len(parts) + 1):
        prefix = ".".join(parts[:count])
        if prefix in site.library.modules:
            crumbs.append(_link(module_path(prefix), parts[count - 1]))
    if entry.kind == "source":
        crumbs.append("source")
    elif entry.name and entry.kind != "index":
        crumbs.append(escape(entry.name.rpartition(".")[2]))
    return f'<div class="breadcrumb">{" › ".join(crumbs)}</div>'


def _sidebar(site: InstalledDocs, entry: Entry) -> str:
    siblings, at = _siblings(site, entry)
    if at < 0:
        return (
            '<h4>Documentation</h4><ul><li><a href="/">Packages</a></li><li><a href="/index/">All names</a></li></ul>'
        )
    heading = _link(module_path(entry.parent), entry.parent) if entry.parent else '<a href="/">Packages</a>'
    rows = []
    for path in siblings[max(at - SIBLINGS, 0) : at + SIBLINGS + 1]:
        label = site.entries[path].name.rpartition(".")[2]
        rows.append(
            f"<li><strong>{escape(label)}</strong></li>" if path == entry.path else f"<li>{_link(path, label)}</li>"
        )
    return f"<h4>{heading}</h4><ul>{''.join(rows)}</ul>"


def _pager(site: InstalledDocs, entry: Entry) -> str:
    siblings, at = _siblings(site, entry)
    links = []
    if at > 0:
        links.append(_link(siblings[at - 1], f"← Previous: {site.entries[siblings[at - 1]].name}"))
    if 0 <= at < len(siblings) - 1:
        links.append(_link(siblings[at + 1], f"Next: {site.entries[siblings[at + 1]].name} →"))
    return f'<div class="pager">{" ".join(links)}</div>' if links else ""


def _siblings(site: InstalledDocs, entry: Entry) -> tuple[list[str], int]:
    """Paths beside this page and its position among them, -1 for pages that have no place in the tree."""
    if entry.kind == "module":
        paths = [module_path(name) for name in site.children[entry.parent]]
    elif entry.kind in ("class", "function"):
        paths = [member.path for member in site.members[entry.parent]]
    else:
        return [], -1
    return paths, paths.index(entry.path)


def _link(path: str, text: str, code: bool = False) -> str:
    shown = f"<code>{escape(text)}</code>" if code else escape(text)
    return f'<a href="{path}">{shown}</a>'


# -- pages about the whole site ---------------------------------------------------------------------------------------


def _home(site: InstalledDocs, entry: Entry) -> tuple[str, str]:
    rows = []
    for name in site.children[""]:
        below = sum(1 for other in site.library.modules if other.startswith(f"{name}."))
        size = f"{below} submodules" if below else f"{len(site.members.get(name, ()))} names"
        rows.append(f"<tr><td>{_link(module_path(name), name, code=True)}</td><td>{size}</td></tr>")
    body = (
        f"<h1>{site.version} documentation</h1>"
        "<p>Welcome. These pages document the standard library and the packages installed beside it, as their authors "
        "describe them in the source code. Choose a package below, or look a name up in the "
        '<a href="/index/">index</a>.</p>'
        f"<h2>Packages and modules</h2><table>{''.join(rows)}</table>"
    )
    return "Home", body


def _search(site: InstalledDocs, entry: Entry) -> tuple[str, str]:
    form = '<form action="/search"><input name="q" aria-label="Search"> <button>Search</button></form>'
    return "Search", f"<h1>Search</h1>{form}<p>Type a part of a name. The search is over names, not over texts.</p>"


def _index(site: InstalledDocs, entry: Entry) -> tuple[str, str]:
    if not entry.name:
        rows = [f"<li>{_link(path, f'{names[0]} … {names[-1]}')}</li>" for path, names in site.index_pages.items()]
        return "Index", f"<h1>Index</h1><p>All names in alphabetical order.</p><ul>{''.join(rows)}</ul>"
    names = site.index_pages[entry.path]
    rows = [
        f"<li>{_link(site.names[name], name.rpartition('.')[2], code=True)} ({kind} {escape(where)})</li>"
        for name in names
        for kind, where in [
            (site.entries[site.names[name]].kind, f"in {name.rpartition('.')[0]}" if "." in name else "")
        ]
    ]
    letter = entry.name.partition("-")[0].upper()
    return f"Index {entry.name.upper()}", f"<h1>Index: {letter}</h1><ul>{''.join(rows)}</ul>"


# -- modules, classes, functions --------------------------------------------------------------------------------------


def _module(site: InstalledDocs, entry: Entry) -> tuple[str, str]:
    module = entry.source
    assert module is not None
    what = "package" if module.package else "module"
    html = [f"<h1><code>{entry.name}</code></h1>"]
    html.append(_doc(site, entry, module.doc) if module.doc else f"<p>This {what} has no description.</p>")
    if submodules := site.children.get(entry.name):
        rows = [
            f"<tr><td>{_link(module_path(name), name, code=True)}</td><td>{count} names</td></tr>"
            for name in submodules
            for count in [len(site.members.get(name, ()))]
        ]
        html.append(f"<h2>Submodules</h2><table>{''.join(rows)}</table>")
    members = site.members.get(entry.name, [])
    for kind, heading in (("class", "Classes"), ("function", "Functions")):
        rows = [_member_row(member, entry) for member in members if member.kind == kind]
        if rows:
            html.append(f"<h2>{heading}</h2><table>{''.join(rows)}</table>")
    if others := site.reexports.get(entry.name):
        rows = [f"<li>{_link(site.names[name], name, code=True)}</li>" for name in sorted(set(others))]
        html.append(f"<h2>Also available here</h2><ul>{''.join(rows)}</ul>")
    origins = {origin for origin, _ in module.imports.values()} | set(module.stars)
    imported = sorted(name for name in origins if name in site.library.modules and name != entry.name)
    if imported:
        rows = [f"<li>{_link(module_path(name), name, code=True)}</li>" for name in imported[:IMPORTED]]
        html.append(f"<h2>Imports</h2><p>This {what} uses:</p><ul>{''.join(rows)}</ul>")
    html.append(_source_link(site, entry))
    return entry.name, "\n".join(html)


def _member_row(member: Entry, page: Entry) -> str:
    item = member.item
    assert item is not None
    text = prose.summary(item.doc) if member.key == page.key else ""  # sentences stay in the module they belong to
    link = _link(member.path, item.name if item.name else member.name, code=True)
    return f"<tr><td>{link}</td><td>{prose.inline(text, lambda name, sure: None)}</td></tr>"


def _class(site: InstalledDocs, entry: Entry) -> tuple[str, str]:
    item = entry.item
    assert item is not None
    html = [f"<h1>class <code>{escape(entry.name)}</code></h1>", _signature("class", entry.name, item)]
    if item.bases:
        bases = []
        for base in item.bases:
            href = site.resolve(base, entry)
            bases.append(_link(href, base, code=True) if href else f"<code>{escape(base, quote=False)}</code>")
        html.append(f"<p>Bases: {', '.join(bases)}</p>")
    html.append(_doc(site, entry, item.doc))
    html += _methods(site, entry, item.members, entry.name, level=2)
    html.append(_source_link(site, entry))
    return entry.name, "\n".join(part for part in html if part)


def _methods(site: InstalledDocs, entry: Entry, members: list[Item], owner: str, level: int) -> list[str]:
    html = []
    for kind, heading in (("function", "Methods"), ("class", "Nested classes")):
        group = [member for member in members if member.kind == kind]
        if group:
            html.append(f"<h{min(level, 6)}>{heading}</h{min(level, 6)}>")
        for member in group:
            name = f"{owner}.{member.name}"
            tag = f"h{min(level + 1, 6)}"
            html.append(f'<{tag} id="{escape(name)}"><code>{escape(member.name)}</code></{tag}>')
            html.append(_signature(member.label or kind, member.name, member))
            if member.doc:
                html.append(_doc(site, entry, member.doc, level + 2))
            html += _methods(site, entry, member.members, name, level + 1)
    return html


def _function(site: InstalledDocs, entry: Entry) -> tuple[str, str]:
    item = entry.item
    assert item is not None
    html = [f"<h1><code>{escape(entry.name)}</code></h1>", _signature(item.label or "function", entry.name, item)]
    html.append(_doc(site, entry, item.doc) if item.doc else "<p>This function has no description.</p>")
    html.append(_source_link(site, entry))
    return entry.name, "\n".join(html)


def _signature(label: str, name: str, item: Item) -> str:
    arguments = "" if item.label == "property" else item.signature or "()" * (item.kind == "function")
    return f'<p class="signature"><em>{label}</em> <code>{escape(name + arguments, quote=False)}</code></p>'


def _doc(site: InstalledDocs, entry: Entry, doc: str, level: int = 2) -> str:
    return prose.render(doc, lambda name, sure: site.resolve(name, entry, sure), level)


def _source_link(site: InstalledDocs, entry: Entry) -> str:
    if entry.source is None or entry.source.file is None or source_path(entry.source) not in site.entries:
        return ""
    anchor = f"#L{entry.item.line}" if entry.item is not None and entry.item.line else ""
    path, name = source_path(entry.source), escape(entry.source.name)
    return f'<p><a href="{path}{anchor}">Source code</a> of <code>{name}</code></p>'


# -- code listings ----------------------------------------------------------------------------------------------------


def _source(site: InstalledDocs, entry: Entry) -> tuple[str, str]:
    module = entry.source
    assert module is not None
    assert module.file is not None
    title = f"Source code of {module.name}"
    try:
        text = read_source(module.file)
    except (OSError, SyntaxError, ValueError):
        return title, f"<h1>{title}</h1><p>The file is not there any more.</p>"
    known = _known_names(site, entry)
    code = CODE_TOKEN.sub(lambda match: _token(match, known), escape(text, quote=False))
    lines = {item.line: item.name for item in module.items.values()}
    rows = code.split("\n")
    for line, name in lines.items():
        if line and line <= len(rows):
            rows[line - 1] = f'<span id="L{line}" title="{escape(name)}"></span>{rows[line - 1]}'
    file = Path(module.file).name
    home = _link(module_path(entry.key), entry.key, code=True)
    intro = f"<p>File <code>{escape(file)}</code>, {len(rows):,} lines. Documentation: {home}.</p>"
    return title, f"<h1>{title}</h1>{intro}<pre><code>{chr(10).join(rows)}</code></pre>"


def _known_names(site: InstalledDocs, entry: Entry) -> dict[str, str]:
    """Names that occur in the module's code and have a page: its own definitions and its imports."""
    module = entry.source
    assert module is not None
    known: dict[str, str] = {}
    for name in (*module.imports, *module.items):
        found = site.resolve(name, entry)
        if found and not found.startswith("/docs/builtins/"):
            known[name] = found
    return known


def _token(match: re.Match[str], known: dict[str, str]) -> str:
    kind, text = match.lastgroup, match[0]
    if kind == "name":
        href = known.get(text) or known.get(text.partition(".")[0])
        return f'<a href="{href}">{text}</a>' if href else text
    if "\n" in text:
        return text  # one element per line: a docstring stays plain
    return f'<span class="{(kind or "k")[0]}">{text}</span>'


def sitemap(paths: Iterable[str], base: str) -> str:
    """sitemap.xml of the given paths."""
    rows = "".join(f"<url><loc>{base + quote(path)}</loc></url>\n" for path in paths)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
        f"{rows}</urlset>\n"
    )
