"""What tests of several folders use: fakes, servers, and ways to run a call."""
