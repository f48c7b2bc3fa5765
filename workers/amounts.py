"""Amounts of money as people write them, read exactly.

Both conventions of separators are read ("1,234.50" and "1.234,50", also blanks and apostrophes between
thousands), with a currency sign or code on either side, and with a minus before, after, or as parentheses
round the number or round all of it.

One shape can be read two ways: a single mark with exactly three digits after it ("1,234", "1.234").
It is read by the first of these that applies:

1. a first group of no digit or a leading zero (".500", "0,500") makes the mark a decimal mark;
2. the decimal mark of the rest of the column, when the caller knows it;
3. a comma separates thousands, a dot decimals, which is how programs write numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

MAX_LENGTH = 60  # characters; int() and Decimal() of endless digits are a way to stall a reader
MAX_EXPONENT = 12  # "1e999999" is nobody's invoice, and writing it out in digits would fill the memory

_CODES = (
    "AED|ARS|AUD|BAM|BDT|BGN|BHD|BOB|BRL|BYN|CAD|CHF|CLP|CNY|COP|CRC|CZK|DKK|DOP|DZD|EGP|EUR|GBP|GEL|GHS|GTQ|HKD|HNL|"
    "HRK|HUF|IDR|ILS|INR|ISK|JMD|JOD|JPY|KES|KRW|KWD|KZT|LKR|MAD|MKD|MXN|MYR|NGN|NOK|NZD|OMR|PAB|PEN|PHP|PKR|PLN|PYG|"
    "QAR|RON|RSD|RUB|SAR|SEK|SGD|THB|TND|TRY|TTD|TWD|TZS|UAH|UGX|USD|UYU|UZS|VND|XAF|XOF|ZAR|ZMW"
)
_WORDS = r"KR\.?|ZŁ|KČ|FT|FR\.?|SFR\.?|RS\.?|LEI"
_SIGNS = r"(?:[A-Z]{1,3})?[$¢£¤¥฿₠-⃀]"
_CURRENCY = rf"(?:(?:{_CODES}|{_WORDS}|{_SIGNS})\s*)*"
_NUMBER = r"[0-9.,'](?:[0-9.,' ]*[0-9.,])?"
_WRITTEN = re.compile(
    rf"(?P<open>\()?\s*(?P<before>[-+])?\s*{_CURRENCY}(?P<within>[-+(])?\s*(?P<number>{_NUMBER})"
    rf"\s*(?P<after>[-)])?\s*{_CURRENCY}(?P<last>-)?\s*(?P<close>\))?",
    re.IGNORECASE,
)
_GROUPED = re.compile(
    r"[0-9]{1,3}(?P<mark>[.,' ])(?:[0-9]{2,3}(?P=mark))*[0-9]{3}(?P<decimals>(?!(?P=mark))[.,][0-9]*)?"
)
_UNGROUPED = re.compile(r"[0-9]+[.,]?[0-9]*|[.,][0-9]+")
_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(?:(?P<mark>[.,])[0-9]+)?[eE](?P<exponent>[-+]?[0-9]{1,3})")
_PLAIN = re.compile(r"-?[0-9]{1,40}(?:\.(?:[0-9]{1,2}|[0-9]{4,15}))?")  # says the same in every convention
_BLANKS_AND_QUOTES = str.maketrans(
    {"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2019": "'", "\u2018": "'", "\u2212": "-"}
)


@dataclass(frozen=True, slots=True)
class AmountReading:
    """What one cell can mean.

    `value` is the amount with a decimal dot assumed; `with_comma` the amount if the column writes a decimal
    comma, when that differs; `decimal_mark` is what the cell itself tells of the convention, "." or "," or None.
    """

    value: Decimal
    with_comma: Decimal | None = None
    decimal_mark: str | None = None

    def by(self, decimal_mark: str | None) -> Decimal:
        """The amount in a column that writes `decimal_mark`, or no known one."""
        return self.with_comma if self.with_comma is not None and decimal_mark == "," else self.value


def parse_amount(text: str, decimal_mark: str | None = None) -> Decimal | None:
    """The exact amount that `text` states, or None when it is no amount.

    Args:
        text: a cell as it came.
        decimal_mark: "." or ",", the convention of the column; settles only what can be read two ways.
    """
    reading = read_amount(text)
    return None if reading is None else reading.by(decimal_mark)


def read_amount(text: str) -> AmountReading | None:
    """All that `text` says about an amount, or None when it is no amount."""
    if len(text) > MAX_LENGTH:
        return None
    text = text.strip().translate(_BLANKS_AND_QUOTES)
    if scientific := _SCIENTIFIC.fullmatch(text):
        if abs(int(scientific["exponent"])) > MAX_EXPONENT:
            return None
        return AmountReading(Decimal(text.replace(",", ".")), None, scientific["mark"])
    written = _WRITTEN.fullmatch(text)
    sign = written and _sign(written)
    if written is None or sign is None:
        return None
    return _read_digits(written["number"], sign)


def is_plain(text: str) -> bool:
    """Whether `text` is plain digits that say the same in every convention: nothing to read, nothing to change."""
    return _PLAIN.fullmatch(text) is not None


def plain_text(amount: Decimal) -> str:
    """The amount in digits with a decimal dot, never in scientific notation: "1234.50"."""
    return format(amount, "f")


def as_settled(text: str, amount: str) -> str:
    """A cell that can be read two ways, so written that it says by itself the amount that its column has made of it."""
    reading = read_amount(text)
    if reading is None or reading.with_comma is None:
        return text
    text = text.strip()
    written = _WRITTEN.fullmatch(text.translate(_BLANKS_AND_QUOTES))
    assert written is not None
    start, end = written.span("number")  # what stands around it may be a currency
    number = amount.removeprefix("-")
    return text[:start] + (number if is_plain(number) else f"{number}0") + text[end:]


def _sign(written: re.Match[str]) -> str | None:
    """ "-" or "", or None when the signs contradict each other or a parenthesis stands alone."""
    signs = "".join(filter(None, written.group("open", "before", "within", "after", "last", "close")))
    return {"": "", "+": "", "-": "-", "()": "-"}.get(signs)


def _read_digits(number: str, sign: str) -> AmountReading | None:
    grouped = _GROUPED.fullmatch(number)
    if grouped is None:
        return _read_ungrouped(number, sign)
    mark, decimals = grouped["mark"], grouped["decimals"] or ""
    whole = number.removesuffix(decimals).replace(mark, "")
    if decimals or mark in "' ":
        return AmountReading(_decimal(sign, whole + decimals.replace(",", ".")), None, decimals[:1] or None)
    if number.count(mark) > 1:
        return AmountReading(_decimal(sign, whole), None, "," if mark == "." else ".")
    as_decimals = _decimal(sign, number.replace(mark, "."))
    if number.startswith("0"):
        return AmountReading(as_decimals, None, mark)
    as_thousands = _decimal(sign, whole)
    return AmountReading(as_decimals, as_thousands) if mark == "." else AmountReading(as_thousands, as_decimals)


def _read_ungrouped(number: str, sign: str) -> AmountReading | None:
    if _UNGROUPED.fullmatch(number) is None:
        return None
    mark = "." if "." in number else "," if "," in number else None
    return AmountReading(_decimal(sign, number.replace(",", ".")), None, mark)


def _decimal(sign: str, digits: str) -> Decimal:
    amount = Decimal(sign + digits)
    return amount if amount else amount.copy_abs()
