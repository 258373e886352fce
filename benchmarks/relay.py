"""The plainest proxy that aiohttp can be: `web.Server` on one side, `ClientSession` on the other, nothing between.

No key is checked and nothing is recorded: what llmproxy costs more than this is what it does more.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
from aiohttp import web


class Relay:
    """Sends every request on to one upstream, and streams what comes back as a stream.

    Args:
        upstream_url: Scheme, host and port.
    """

    def __init__(self, session: aiohttp.ClientSession, upstream_url: str) -> None:
        self._session = session
        self._upstream_url = upstream_url

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request."""
        body = await request.read()
        headers = {"content-type": "application/json", "authorization": "Bearer of-the-vendor"}
        url = self._upstream_url + request.path
        async with self._session.request(request.method, url, data=body, headers=headers) as answer:
            if answer.content_type == "text/event-stream":
                return await self._stream(request, answer)
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    async def _stream(self, request: web.BaseRequest, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while data := await answer.content.readany():
            await response.write(data)
        await response.write_eof()
        return response


async def serve(upstream_url: str) -> None:
    """Serve on a free port, and print it."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        handler = web.Server(Relay(session, upstream_url).handle, access_log=None)
        server = await asyncio.get_running_loop().create_server(handler, "127.0.0.1", 0, backlog=2048)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
