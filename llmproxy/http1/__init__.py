"""An HTTP/1.1 client on bare protocols: no task, no timer and no header object for each request.

`reader` knows the bytes, `connection` one connection, `pool` those that are open, `dial` how to open one,
`address` what a URL means; `transport` puts them together.
"""
