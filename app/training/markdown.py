"""Text of others in Markdown: names of variants, domains and licences are shown as they are,
not as markup.
"""

import re

# an underscore inside of a word is none
MARKUP = re.compile(r"[\\`*{}\[\]<>#|~!&$]|(?<!\w)_|_(?!\w)")


def escaped(text: str) -> str:
    """Return text that Markdown and HTML show letter by letter,
    in one line and one cell of a table.
    """
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
