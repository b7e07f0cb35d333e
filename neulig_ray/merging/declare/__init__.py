"""What methods declare of themselves: a file for each kind, with its dataclass and its decorator."""
