"""Contracts that plug-ins can hold their own to, as our own are held to them.

Each module has a suite for pytest of one kind of thing: derive a class named ``Test...`` from it in
your tests, and define the fixtures that its docstring names.
"""
