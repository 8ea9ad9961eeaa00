"""The CPU kernel alone: does it wait for memory or for arithmetic?"""
