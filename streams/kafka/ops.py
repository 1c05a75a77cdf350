"""The page for operators: `/metrics`, `/healthz`, `/readyz`. On loopback unless told otherwise; it changes nothing.

Faust's own web server is off: it listens on all addresses by default and serves the contents of tables.
"""

import logging
from typing import TYPE_CHECKING

import mode
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from streams.errors import SettingsError

if TYPE_CHECKING:
    from streams.kafka.member import Member

__all__ = ["OpsPage"]

log = logging.getLogger("celosia.ops")


class OpsPage(mode.Service):
    """Serves the page while it runs. `port` is the port it got, also where 0 was asked for."""

    def __init__(self, member: "Member", host: str, port: int) -> None:
        super().__init__()
        self.port = port
        self._member = member
        self._host = host
        self._runner: web.AppRunner | None = None

    async def on_start(self) -> None:
        """Listen.

        Raises:
            SettingsError: the address cannot be had.
        """
        page = web.Application()
        page.router.add_get("/metrics", self._metrics)
        page.router.add_get("/healthz", self._healthz)
        page.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(page, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self.port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise SettingsError(
                f"--ops-port: {self._host}:{self.port} cannot be had ({error.strerror}); choose another, or 0 for any"
            ) from None
        self.port = self._runner.addresses[0][1]
        log.info("operators: http://%s:%d/metrics /healthz /readyz", self._host, self.port)

    async def on_stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, _request: web.Request) -> web.Response:
        body = generate_latest(self._member.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        """Ready means: in the group, and every lane past its gate."""
        ready = self._member.ready
        lanes = {lane.name: lane.state.value for lane in self._member.lanes}
        return web.json_response({"ready": ready, "lanes": lanes}, status=200 if ready else 503)
