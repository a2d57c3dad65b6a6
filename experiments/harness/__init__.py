"""The harness: cases are measured to rows, rows are read by reports."""
