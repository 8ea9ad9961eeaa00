"""Attention of few query rows on a Hopper GPU, and how its launches are cut."""
