"""A C source as the rules need it: comments and literals blanked, functions found by their braces.

This is no C parser. It relies on what clang-format makes of our code (a function's closing brace in
column 0 of nesting, one statement per line) and on our code having no function-like macro that
opens a brace it does not close.
"""
import re
from dataclasses import dataclass


@dataclass
class Function:
    name: str
    signature: str
    line: int  # of the opening brace, from 1
    n_lines: int  # lines of code between the braces: blank lines and comments do not count


def blank(text):
    """`text` with comments and the insides of literals replaced by blanks, line for line."""
    out, i, n = [], 0, len(text)
    while i < n:
        two = text[i:i + 2]
        if two == "/*":
            end = text.find("*/", i + 2)
            end = n if end < 0 else end + 2
        elif two == "//":
            end = text.find("\n", i)
            end = n if end < 0 else end
        elif text[i] in "\"'":
            end = end_of_literal(text, i)
            out.append(text[i] + re.sub(r"[^\n]", " ", text[i + 1:end - 1]) + text[i])
            i = end
            continue
        else:
            out.append(text[i])
            i += 1
            continue
        out.append(re.sub(r"[^\n]", " ", text[i:end]))
        i = end
    return "".join(out)


def end_of_literal(text, start):
    quote, i = text[start], start + 1
    while i < len(text) and text[i] not in (quote, "\n"):
        i += 2 if text[i] == "\\" else 1
    return min(i + 1, len(text))


def without_preprocessor(code):
    """Blanks directives with their continuation lines, so that macro bodies are not functions."""
    lines, inside = [], False
    for line in code.split("\n"):
        directive = inside or line.lstrip().startswith("#")
        inside = directive and line.rstrip().endswith("\\")
        lines.append("" if directive else line)
    return "\n".join(lines)


def function_name(signature):
    """The name that `signature` declares if a function body may follow it, else None."""
    sig = re.sub(r"__attribute__\s*\(\(.*?\)\)", " ", signature, flags=re.S)
    sig = re.sub(r"\bUS_PRINTF\s*\([^)]*\)|\b__launch_bounds__\s*\([^)]*\)", " ", sig)
    sig = " ".join(sig.split())
    if "=" in sig or not sig.endswith(")"):
        return None
    m = re.search(r"([A-Za-z_]\w*)\s*\(", sig)
    return m.group(1) if m else None


def functions(code):
    """Functions defined at file level of blanked `code`."""
    code = without_preprocessor(code)
    code = re.sub(r'extern\s+"\s*"\s*\{', lambda m: " " * len(m.group(0)), code)
    found, depth, start, opened = [], 0, 0, None
    for m in re.finditer(r"[{};]", code):
        ch, pos = m.group(0), m.start()
        if ch == "{":
            if depth == 0:
                signature = code[start:pos]
                name = function_name(signature)
                opened = (name, " ".join(signature.split()), pos) if name else None
            depth += 1
        elif ch == "}":
            depth = max(depth - 1, 0)
            if depth == 0:
                if opened:
                    name, signature, begin = opened
                    body = code[begin + 1:pos]
                    found.append(Function(name, signature, code.count("\n", 0, begin) + 1,
                                          sum(1 for x in body.split("\n") if x.strip())))
                opened, start = None, pos + 1
        elif depth == 0:
            start = pos + 1
    return found


def comment_share(text):
    """Share of the non-blank lines that hold nothing but comment."""
    before = [x for x in text.split("\n") if x.strip()]
    after = [x for x in blank(text).split("\n") if x.strip()]
    return (len(before) - len(after)) / max(len(before), 1)
