"""`python -m llmproxy` is `llmproxy`."""

from llmproxy.cli import main

main()
