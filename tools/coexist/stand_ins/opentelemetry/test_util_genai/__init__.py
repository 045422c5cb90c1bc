"""What the official instrumentation's tests import from a package that is on no index.

Written for these tests from what they use, and no more; its tests of conformance skip themselves.
"""
