"""What the gateway costs, measured beside no proxy at all and beside the plainest proxy that aiohttp can be."""
