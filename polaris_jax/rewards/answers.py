r"""From a response to the text of its final box, and from a ground truth to its alternatives.

Everything here is linear in the length of the text and runs in the caller's process.
"""

import re
from collections.abc import Iterable

from polaris_jax.rewards.ground_truths import quoted_texts, says_none
from polaris_jax.rewards.verdict import Reason

THINK_END = "</think>"
_INTEGER = re.compile(r"([+-]?[0-9]{1,40})(?:\.0*)?")
_BRACES = {name: re.compile(rf"\\{name}\s*\{{|\\.|[{{}}]", re.DOTALL) for name in ("boxed", "fbox")}


def final_box(response: str, *, require_think: bool = True) -> str | Reason:
    r"""Content of the last complete `\boxed{...}` after the last `</think>`, or the reason why there is none.

    Braces must balance; escaped braces do not count. Of nested boxes the innermost last one wins. Where `\boxed` does
    not occur, `\fbox{...}` is the box. With `require_think=False` a response without `</think>` is read from its start
    (models that do not think).
    """
    final = final_text(response, require_think=require_think)
    return final if isinstance(final, Reason) else box_of(final)


def final_text(response: str, *, require_think: bool = True) -> str | Reason:
    """What follows the last `</think>`, or NO_THINK_END; as in `final_box`."""
    end = response.rfind(THINK_END)
    if end < 0 and require_think:
        return Reason.NO_THINK_END
    return response[end + len(THINK_END) :] if end >= 0 else response


def box_of(final: str) -> str | Reason:
    r"""Content of the last complete box of a final text, or NO_BOX; as in `final_box`."""
    box = last_box(final, "boxed" if "\\boxed" in final else "fbox")
    return Reason.NO_BOX if box is None else box


def last_box(text: str, command: str = "boxed") -> str | None:
    r"""Content of the complete `\boxed{...}` that starts last, or None. One pass, however the braces nest.

    `command` is the box's name, boxed or fbox.
    A later box that never closes is an answer cut short, and then there is none.
    """
    open_braces: list[int] = []  # start of the content for a box, -1 for another brace
    start, stop = -1, -1
    for match in _BRACES[command].finditer(text):
        token = match.group()
        if token.startswith("\\" + command):
            open_braces.append(match.end())
        elif token == "{":
            open_braces.append(-1)
        elif token == "}" and open_braces:
            opened = open_braces.pop()
            if opened > start:
                start, stop = opened, match.start()
    truncated = max(open_braces, default=-1) > start  # the text ends within a later box
    return text[start:stop] if start >= 0 and not truncated else None


def judge_integers(box: str, golds: list[str]) -> Reason | None:
    """The verdict where box and ground truths are all plainly written integers, as most are; None otherwise."""
    matches = [_INTEGER.fullmatch(text.strip()) for text in (box, *golds)]
    if not all(matches):
        return None
    value, *truths = (int(match.group(1)) for match in matches if match)
    return Reason.EQUAL if value in truths else Reason.UNEQUAL


def alternatives(answer: object) -> list[str]:
    """Ground truths as text: a string, a number, or any (nested) list or array of these, each of which is right.

    A list that was written into a string, such as "['70']", is that list. None, NaN and what datasets write where they
    have no answer (proof, N/A, see solution) are no ground truth. Zero-dimensional numpy and pandas values count as
    numbers.
    """
    if isinstance(answer, str):
        if listed := quoted_texts(answer.strip()):
            return [text for text in listed if text.strip() and not says_none(text)]
        return [answer] if answer.strip() and not says_none(answer) else []
    if isinstance(answer, bytes):
        return alternatives(answer.decode("utf-8", errors="replace"))
    if answer is None or getattr(answer, "ndim", None) == 0 or not isinstance(answer, Iterable):
        return _number(answer)
    return [text for part in answer for text in alternatives(part)]


def _number(answer: object) -> list[str]:
    text = str(answer)
    return [] if answer is None or says_none(text) or text in ("<NA>", "NaT") else [text]
