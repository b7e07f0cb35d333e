"""The results table: its columns, what one line of it stands for, means and spreads. Knows pandas alone."""
