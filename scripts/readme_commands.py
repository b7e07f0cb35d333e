"""Print the N-th bash block of a Markdown file: what .ci/run executes is what the README says.

python scripts/readme_commands.py README.md 1
"""

import re
import sys
from pathlib import Path


def commands(text: str) -> list[str]:
    """The contents of the fenced bash blocks, in order."""
    return re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    print(commands(Path(sys.argv[1]).read_text(encoding="utf-8"))[int(sys.argv[2]) - 1], end="")
