"""The tokens of a LaTeX source as TeX meets them: files opened where they are included, macros replaced where used.

Only the paper's own macros and switches are known: \\newcommand and its kin, \\def with plain arguments, \\let,
\\DeclareMathOperator, \\newif. Everything is bounded, so that time is linear in the source and the bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container

from bloomery.core.errors import DataError
from bloomery.web.interleave.latex_source import MAX_SOURCE, Tree

MAX_DEPTH = 20  # files within files
MAX_TOKENS = 5_000_000  # read in all, those of macros included
MAX_EXPANSIONS = 300_000  # macros replaced
MAX_ARGUMENT = 20_000  # tokens of one argument of a macro
PAR, END = "\n\n", "\x00end"  # the end of a paragraph, of a file

_TOKEN = re.compile(
    r"""
      (?P<comment> %[^\n]*+\n?[ \t]*+ )
    | (?P<verb> \\verb\*?+ (?P<q>[^A-Za-z*\s]) [^\n]{0,500}? (?P=q) )
    | (?P<url> \\(?:url|href|path) \s*+ \{ [^{}\s]{0,2000} \} )  # in which % is no comment
    | (?P<word> \\[A-Za-z@]++ \*?+ ) (?: [ \t]*+\n(?![ \t]*+\n)[ \t]*+ | [ \t]++ )?
    | (?P<symbol> \\. )
    | (?P<par> [ \t]*+ \n (?:[ \t]*+\n)++ [ \t]*+ )
    | (?P<space> [ \t\n]++ )
    | (?P<mark> \$\$ | [{}\[\]$&~#^_] )
    | (?P<text> [^\\%{}\[\]$&~#^_\s]++ | . )
    """,
    re.VERBOSE | re.DOTALL,
)


def tokens_of(source: str) -> list[str]:
    """The tokens of a source: commands, marks, words, one space, PAR. Comments are gone."""
    found = []
    for match in _TOKEN.finditer(source.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")):
        if match["comment"] is not None:
            continue
        if match["par"] is not None:
            found.append(PAR)
        elif match["space"] is not None:
            found.append(" ")
        else:
            found.append(match["word"] or match[0])
    return found


class TokenReader:
    """A stack of tokens to come, with the macros that are in force. `reserved` commands keep their own meaning."""

    def __init__(self, tree: Tree, reserved: Container[str]) -> None:
        self.tree, self.reserved = tree, reserved
        self.files: list[str] = []  # those that are open
        self.stack: list[str] = []  # the next token last
        self.macros: dict[str, tuple[int, list[str] | None, list[str]]] = {}  # arguments, default of the first, body
        self.switches: dict[str, bool] = {}
        self._read = self._expansions = 0

    def open(self, name: str) -> None:
        """Read a file from its beginning before what follows."""
        if name in self.files:
            raise DataError(f"the files include each other: {' → '.join([*self.files, name])}")
        if len(self.files) >= MAX_DEPTH:
            raise DataError(f"files are included more than {MAX_DEPTH} deep")
        raw = self.tree.read(name, MAX_SOURCE)
        try:
            source = raw.decode()
        except UnicodeDecodeError:
            source = raw.decode("latin-1")  # the usual encoding of older sources
        self.files.append(name)
        self.push([END, *reversed(tokens_of(source))])

    def push(self, reverse: list[str]) -> None:
        """Put tokens, last one first, before what follows."""
        self._read += len(reverse)
        if self._read > MAX_TOKENS:
            raise DataError(f"more than {MAX_TOKENS:,} tokens", fix="a macro that calls itself, or no paper")
        self.stack.extend(reverse)

    def next(self) -> str | None:
        """The next token with macros replaced, or None at the end."""
        while self.stack:
            token = self.stack.pop()
            if token == END:
                self.files.pop()
            elif token[1:] in self.macros and token[0] == "\\":
                self._expand(token[1:])
            else:
                return token
        return None

    def _expand(self, name: str) -> None:
        self._expansions += 1
        if self._expansions > MAX_EXPANSIONS:
            raise DataError(f"more than {MAX_EXPANSIONS:,} macros are used", fix="one of them calls itself")
        count, default, body = self.macros[name]
        arguments = []
        if count and default is not None:
            option = self.option()
            arguments.append(default if option is None else option)
        while len(arguments) < count:
            arguments.append(self.argument())
        result: list[str] = []
        place = 0
        while place < len(body):
            number = body[place + 1][:1] if body[place] == "#" and place + 1 < len(body) else ""
            if number.isdigit() and 0 < int(number) <= count:
                result += arguments[int(number) - 1]
                result += [body[place + 1][1:]] if body[place + 1][1:] else []
                place += 2
            else:
                result.append(body[place])
                place += 1
            if len(result) > MAX_TOKENS:
                raise DataError(f"the macro \\{name} becomes more than {MAX_TOKENS:,} tokens")
        self.push(result[::-1])

    def blank(self) -> None:
        """Skip spaces."""
        while self.stack and self.stack[-1] in (" ", ""):
            self.stack.pop()

    def argument(self, limit: int = MAX_ARGUMENT) -> list[str]:
        """The tokens of the next {argument}, or the next token."""
        self.blank()
        if not self.stack or self.stack[-1] == END:
            return []
        token = self.stack.pop()
        if token != "{":
            if len(token) > 1 and token[0] not in "\\\n":  # TeX takes one letter of a word
                self.stack.append(token[1:])
                return [token[0]]
            return [token]
        found: list[str] = []
        depth = 1
        while self.stack and self.stack[-1] != END:
            token = self.stack.pop()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return found
            found.append(token)
            if len(found) > limit:
                raise DataError(f"an argument of more than {limit:,} tokens", fix="probably a brace that never closes")
        return found

    def option(self) -> list[str] | None:
        """The tokens of the next [option], or None."""
        self.blank()
        if not self.stack or self.stack[-1] != "[":
            return None
        self.stack.pop()
        found: list[str] = []
        depth = 0
        while self.stack and self.stack[-1] not in (END, PAR):
            token = self.stack.pop()
            depth += (token == "{") - (token == "}")
            if token == "]" and depth <= 0:
                break
            found.append(token)
        return found

    def drop(self) -> None:
        """Leave out the next argument, however long."""
        self.argument(MAX_TOKENS)

    def name(self) -> str:
        """The next argument as a name."""
        return "".join(self.argument()).strip()

    def skip(self, name: str) -> None:
        """Leave out an environment to its end."""
        depth = 1
        while depth and self.stack and self.stack[-1] != END:
            token = self.stack.pop()
            if token in ("\\begin", "\\end") and self.name() == name:
                depth += 1 if token == "\\begin" else -1

    def new_command(self) -> None:
        """\\newcommand{\\name}[count][default]{body}."""
        name = self.name().lstrip("\\").strip()
        count, default = self.option(), None
        if count is not None:
            default = self.option()
        digits = "".join(count or []).strip()
        self._define(name, int(digits) if digits.isdigit() else 0, default, self.argument())

    def tex_def(self) -> None:
        """\\def\\name#1#2{body}; other patterns of arguments are not known and the macro is left alone."""
        self.blank()
        if not self.stack:
            return
        name, tokens = self.stack.pop()[1:], list[str]()
        while self.stack and self.stack[-1] not in ("{", END, PAR):
            tokens.append(self.stack.pop())
        body, pattern = self.argument(), "".join(tokens).replace(" ", "")
        count = pattern.count("#")
        if pattern == "".join(f"#{n + 1}" for n in range(count)):
            self._define(name, count, None, body)

    def operator(self) -> None:
        """\\DeclareMathOperator{\\name}{text}."""
        name = self.name().lstrip("\\").strip()
        self._define(name, 0, None, ["\\operatorname", "{", *self.argument(), "}"])

    def _define(self, name: str, count: int, default: list[str] | None, body: list[str]) -> None:
        if name and name not in self.reserved and f"\\{name}" not in body:
            self.macros[name] = (count, default, body)

    def let(self) -> None:
        """\\let\\a\\b or \\let\\a=\\b."""
        self.blank()
        name = self.stack.pop()[1:] if self.stack else ""
        self.blank()
        while self.stack and self.stack[-1] in ("=", " "):
            self.stack.pop()
        if self.stack and self.stack[-1][:1] == "\\":
            target = self.stack.pop()
            if target != f"\\{name}":
                self._define(name, 0, None, [target])

    def new_switch(self) -> None:
        """\\newif\\ifname: false until \\nametrue."""
        self.blank()
        if self.stack and self.stack[-1].startswith("\\if"):
            name = self.stack.pop()[3:]
            self.switches[name] = False
            for value in ("true", "false"):
                self.macros[name + value] = (0, None, [f"\\bloomeryset{value}", "{", name, "}"])

    def set_switch(self, value: bool) -> None:
        """What \\nametrue and \\namefalse stand for."""
        self.switches[self.name()] = value

    def conditional(self, name: str) -> None:
        """\\if…: a condition that is not known counts as true."""
        if name == "iffalse" or not self.switches.get(name[2:], True):
            self.skip_branch(to_else=True)

    def skip_branch(self, to_else: bool = False) -> None:
        """Up to the \\fi that belongs here, or its \\else."""
        depth = 1
        while self.stack and self.stack[-1] != END:
            token = self.stack.pop()
            if token == "\\fi":
                depth -= 1
            elif token.startswith("\\if") and token[1:] not in ("iff", "ifthenelse"):
                depth += 1
            if depth == 0 or (to_else and depth == 1 and token == "\\else"):
                return

    def theorem(self) -> None:
        """\\newtheorem{name}[like]{Title}[within]: no text."""
        self.argument()
        self.option()
        self.argument()
        self.option()


DEFINITIONS: dict[str, Callable[[TokenReader], None]] = {
    **dict.fromkeys(("newcommand", "renewcommand", "providecommand", "DeclareRobustCommand"), TokenReader.new_command),
    **dict.fromkeys(("def", "gdef", "edef", "xdef"), TokenReader.tex_def),
    "let": TokenReader.let,
    "DeclareMathOperator": TokenReader.operator,
    "newtheorem": TokenReader.theorem,
    "newif": TokenReader.new_switch,
    "bloomerysettrue": lambda tokens: tokens.set_switch(True),
    "bloomerysetfalse": lambda tokens: tokens.set_switch(False),
    "else": TokenReader.skip_branch,
    "fi": lambda tokens: None,
}
