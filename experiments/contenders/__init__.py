"""Who is measured: ours, the toolkits' own, and what a user would write."""
