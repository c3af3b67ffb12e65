import re

_WORDS = re.compile(r"(?P<escape>\\[()\[\]\\]?)|(?P<open>[(\[])|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_OPENED_BY = {")": "(", "]": "["}


def parse_prompt_attention(text):
    """[text, weight] of each part of a prompt, those of one weight joined; ["BREAK", -1] where it is broken."""
    parts, opened = [], {"(": [], "[": []}

    def close(start, factor):
        for part in parts[start:]:
            part[1] *= factor

    for found in _WORDS.finditer(text):
        word = found[0]
        opener = _OPENED_BY.get(word)
        if found["escape"]:
            parts.append([word[1:], 1.0])
        elif found["open"]:
            opened[word].append(len(parts))
        elif found["weight"] and opened["("]:
            close(opened["("].pop(), float(found["weight"]))
        elif opener and opened[opener]:
            close(opened[opener].pop(), _FACTORS[opener])
        else:
            for index, part in enumerate(re.split(r"\s*\bBREAK\b\s*", word)):
                parts += [["BREAK", -1]] * (index > 0) + [[part, 1.0]]
    for opener, starts in opened.items():
        for start in starts:
            close(start, _FACTORS[opener])
    joined = parts[:1] or [["", 1.0]]
    for part, weight in parts[1:]:
        if weight == joined[-1][1]:
            joined[-1][0] += part
        else:
            joined.append([part, weight])
    return joined
