"""Hides passwords in addresses. Every address, and every text that may hold one, is shown through this file."""

from __future__ import annotations

import re

_SCHEME = r"[a-zA-Z][a-zA-Z0-9+.-]{0,30}:/{1,2}"
_HOST = r"(?:\[[\w:.%]+\]|(?!\d+[:/])[\w.-]+)"
_PORT = r"\d+(?:[:/?#\s]|$)"
_WORD = r"(?:(?!://)\S)*"
# A password may hold anything, an @, a slash and a space too. Text that begins like a port is a port, unless an @ with
# a host and its path or port follows. Where it cannot be known, more is hidden rather than less, but nothing of a next
# address.
_PASSWORD = re.compile(
    rf"""
    (?P<user>
        {_SCHEME}
        (?! [^:/?\#\s]* \[[\w:.%]*\] (?:[:/?\#\s]|$) )          # a host that is an IPv6 address,
        (?! (?:[^:/?\#\s]*@)? \d+(?:\.\d+){{3}} : {_PORT} )     # or an IPv4 address with its port
        [^:/?\#\s]* : (?!\s)
    )
    (?:
        (?:{_WORD}[^\S\n])*? {_WORD} @ (?={_HOST}(?:/|:\d))
      | (?!{_PORT}) (?: \S*@ | (?:(?!://).)*?@ )
    )
    """,
    re.VERBOSE,
)
_URL = re.compile(rf"{_SCHEME}\S+")
# Many cameras want the password as a parameter: rtsp://host/live?user=eve&password=..., rtsp://host/user=eve_password=..._channel=1.
_NAMES = r"(?:login|user|usr)?(?:passphrase|password|passwd|pass|pas|pwd|psw|pw)|token|auth|secret|(?:api)?key"
_PARAMETER = re.compile(
    rf"(?P<name>[?&;/_-](?:{_NAMES})=)[^&\s]+?(?=['\":,.;)\]}}>]{{0,4}}(?:[&\s]|$))", re.IGNORECASE
)


def without_password(text: str) -> str:
    """Returns the text with the password of every address in it replaced by ***."""
    text = _PASSWORD.sub(r"\g<user>***@", text)
    return _URL.sub(lambda url: _PARAMETER.sub(r"\g<name>***", url[0]), text)
