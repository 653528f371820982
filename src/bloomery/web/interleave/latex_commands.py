"""What the commands and environments of LaTeX mean for reading: which arguments are text, which are left out."""

from __future__ import annotations

import unicodedata

# "d": an argument that is left out, "k": one that is text. Unknown commands lose their name and a [option] only.
_SPECS = {
    "d": """
        cite citep citet citealp citealt citeauthor citeyear citeyearpar citenum nocite Cite Citep Citet parencite
        textcite autocite footcite label ref eqref autoref cref Cref pageref nameref vref bibliography
        bibliographystyle addbibresource vspace hspace pagestyle thispagestyle pagenumbering usepackage
        RequirePackage documentclass documentstyle PassOptionsToPackage color usetikzlibrary geometry hypersetup
        biboptions date author address affiliation affil email ead institute thanks tnotetext fnref corref cortext
        fntext fnmark fancyhf fancyhead fancyfoot lhead rhead chead lfoot rfoot cfoot captionsetup index
        acmConference acmISBN includepdf phantom hphantom vphantom newcounter stepcounter refstepcounter stretch
        linespread theoremstyle DeclareGraphicsExtensions ifthenelse value arabic selectlanguage tikzset pgfplotsset
        sisetup lstset newlength newsavebox usebox cline cmidrule journal subjclass pacs orcid ORCID todo""",
    "dd": """
        setlength addtolength setcounter addtocounter rule definecolor numberwithin DeclareOption markboth resizebox
        fontsize SetKwInOut titleformat addcontentsline newtheoremstyle counterwithin""",
    "dk": "textcolor colorbox raisebox scalebox rotatebox parbox foreignlanguage hyperlink hypertarget",
    "k": "hyperref",  # its label is an option
    "kd": "texorpdfstring",
    "ddk": "multicolumn multirow fcolorbox",
    "ddd": "newenvironment renewenvironment",
}
ARGUMENTS = {name: spec for spec, names in _SPECS.items() for name in names.split()}
HEADINGS = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph", "subparagraph", "caption",
            "captionof", "title", "subtitle", "abstract", "keywords")  # fmt: skip
MATH = {
    f"{name}{star}"
    for name in ("equation", "align", "gather", "multline", "eqnarray", "displaymath", "flalign", "alignat", "math",
                 "dmath", "IEEEeqnarray", "subequations")
    for star in ("", "*")
}  # fmt: skip
LEFT_OUT = {
    f"{name}{star}"
    for name in ("thebibliography", "table", "tabular", "tabularx", "tabulary", "longtable", "sidewaystable", "comment",
                 "tikzpicture", "pgfpicture", "pspicture", "filecontents", "CCSXML", "picture", "supertabular",
                 "wraptable", "tabbing", "threeparttable")
    for star in ("", "*")
}  # fmt: skip
VERBATIM = {"verbatim", "verbatim*", "lstlisting", "Verbatim", "minted", "alltt"}
ENVIRONMENT_ARGUMENTS = {"minipage": "d", "wrapfigure": "dd", "multicols": "d", "list": "dd", "adjustbox": "d",
                         "minted": "d", "subfigure": "d"}  # fmt: skip
SYMBOLS = {
    "ss": "ß", "o": "ø", "O": "Ø", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "aa": "å", "AA": "Å", "l": "ł",
    "L": "Ł", "i": "ı", "j": "ȷ", "dh": "ð", "th": "þ", "S": "§", "P": "¶", "pounds": "£", "euro": "€", "dots": "…",
    "ldots": "…", "textellipsis": "…", "copyright": "©", "textcopyright": "©", "textregistered": "®",
    "texttrademark": "™", "textdegree": "°", "textendash": "–", "textemdash": "—", "textbackslash": "\\",
    "textasciitilde": "~", "textasciicircum": "^", "textunderscore": "_", "textbar": "|", "textless": "<",
    "textgreater": ">", "textquoteleft": "‘", "textquoteright": "’", "textquotedblleft": "“",
    "textquotedblright": "”", "guillemotleft": "«", "guillemotright": "»", "dag": "†", "ddag": "‡",
    "textbullet": "•", "LaTeX": "LaTeX", "TeX": "TeX", "BibTeX": "BibTeX", "quad": " ", "qquad": " ", "space": " ",
    "newline": "\n", "linebreak": " ", "slash": "/", "lq": "‘", "rq": "’", "today": "",
    "&": "&", "%": "%", "$": "$", "#": "#", "_": "_", "{": "{", "}": "}", " ": " ", "\n": " ", ",": " ", ";": " ",
    ":": " ", "!": "", "/": "", "-": "", "@": "", "*": "", "\\": "\n", ">": " ",
}  # fmt: skip
ACCENTS = {
    "`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303", "=": "\u0304", "u": "\u0306", ".": "\u0307",
    '"': "\u0308", "r": "\u030a", "H": "\u030b", "v": "\u030c", "d": "\u0323", "c": "\u0327", "k": "\u0328",
    "b": "\u0331", "t": "\u0361",
}  # fmt: skip


def accented(letter: str, accent: str) -> str:
    """A letter under an accent of TeX as one character where there is one."""
    letter = {"ı": "i", "ȷ": "j"}.get(letter, letter)
    return unicodedata.normalize("NFC", letter[:1] + ACCENTS[accent] + letter[1:]) if letter.strip() else letter
