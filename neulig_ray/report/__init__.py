"""What people read: the results table's schema, summaries, the console table, plots and the HTML page."""
