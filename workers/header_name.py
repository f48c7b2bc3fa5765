"""Names of columns and sheets, compared as people mean them."""

import re
import unicodedata


def normal(name: str) -> str:
    """The name without case, blanks, dots, dashes and underscores."""
    return re.sub(r"[\s._\-\u200b\u200c\u200d\ufeff]+", "", unicodedata.normalize("NFKC", name).casefold())
