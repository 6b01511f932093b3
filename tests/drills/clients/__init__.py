"""The clients of a drill: each asks one message at a time over the public API, and writes down what it sees."""
