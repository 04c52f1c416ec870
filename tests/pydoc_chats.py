"""Chat data out of Python's own documentation: what `help()` says, as questions and answers.

    python tests/pydoc_chats.py FILE.jsonl

writes one conversation a line, {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}.
No network, no package: `pydoc_data.topics` comes with Python, 0.7 MB of English prose, the same
for each version of it. Long topics are asked about part by part, so an answer has some hundreds of
words.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

_LONGEST = 1600  # characters of an answer, about 400 tokens
_QUESTIONS = (
    "Explain {what} in Python.",
    "What does Python's documentation say about {what}?",
    "Tell me about {what} in Python, please.",
)


def conversations() -> Iterator[dict[str, list[dict[str, str]]]]:
    """Return all conversations, always in the same order."""
    for topic, text in sorted(topics.items()):
        title, *paragraphs = _paragraphs(text)
        messages: list[dict[str, str]] = []
        for number, answer in enumerate(_answers(paragraphs)):
            what = f"{topic} ({title})" if title.lower() != topic.lower() else topic
            question = "Go on, please." if number % 3 else _QUESTIONS[number // 3 % len(_QUESTIONS)].format(what=what)
            if number % 3 == 0 and messages:
                yield {"messages": messages}
                messages = []
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer.strip()}]
        if messages:
            yield {"messages": messages}


def write(file: Path) -> int:
    """Write all conversations; return how many."""
    lines = [json.dumps(each, ensure_ascii=False) for each in conversations()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def _paragraphs(text: str) -> list[str]:
    """Return a topic's title and paragraphs, without the lines that underline titles."""
    plain = re.sub(r"^[*=~^\"-]{3,}$", "", text, flags=re.MULTILINE)
    return [each.strip("\n") for each in re.split(r"\n\s*\n", plain) if each.strip()]


def _answers(paragraphs: list[str]) -> Iterator[str]:
    answer = ""
    for paragraph in paragraphs:
        if answer and len(answer) + len(paragraph) > _LONGEST:
            yield answer
            answer = ""
        answer = f"{answer}\n\n{paragraph}".strip("\n")
    if answer:
        yield answer


if __name__ == "__main__":
    print(f"{write(Path(sys.argv[1]))} conversations")
