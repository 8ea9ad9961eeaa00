"""Pages of docs/results, written from the records in results/."""
