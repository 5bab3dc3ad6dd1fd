"""What a run came to: summary, tables, comparisons, the HTML page."""
