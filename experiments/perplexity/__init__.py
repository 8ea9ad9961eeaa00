"""What a smaller cache costs a published model, in bits per byte."""
