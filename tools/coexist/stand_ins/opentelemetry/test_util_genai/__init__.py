"""The part of a package on no index that the official instrumentation's tests import.

Written for these tests from what they use, and no more; its tests of conformance are skipped.
"""
