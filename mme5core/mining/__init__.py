"""Nearest candidates of each query between two sets of vectors, exactly, and the rules that choose among them."""
