"""Rules and how they are carried out: edits, rows left out or rewritten, the closed loop, constraints."""
