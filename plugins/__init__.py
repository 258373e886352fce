"""Plugins that come with llmproxy, each on the public hooks alone."""
