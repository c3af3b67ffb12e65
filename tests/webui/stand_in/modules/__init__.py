"""A stand-in of those parts of the WebUI that the extension touches, small enough to read.

Names and signatures are the WebUI's own, v1.10.1; test_contract.py compares them with its source.
"""
